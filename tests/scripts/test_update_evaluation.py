import pytest
from click.testing import CliRunner


@pytest.fixture
def update(script):
    return script("update_evaluation")


def test_the_section_stands_on_the_page(update):
    assert update.put(update.PAGE.read_text(encoding="utf-8"), update.SECTION, "x").count("\nx\n") == 1


def test_exact_activations_have_no_divergence_of_their_own(update):
    found = {"compute": "float32", "kv_bits": 32, "perplexity": 38.1234, "kl_mean": 0.0, "kl_p99": 0.0}
    row = update.Row("4 bits", found | {"top1_agreement": 1.0}, {"kl_mean": 0.0092})
    assert update.cells(row) == ("4 bits", "float32", "32 bits", "38.123", "-", "-", "-", "0.009200")


@pytest.mark.slow
def test_all_of_it(update, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- activations:begin -->\n<!-- activations:end -->\nb\n")
    done = CliRunner().invoke(
        update.main, ["--folder", str(tmp_path / "models"), "--max-tokens", "64", "--page", str(page)]
    )
    assert done.exit_code == 0, done.output
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 3 * (1 + len(update.BITS))
    assert "63 scored tokens" in page.read_text()
