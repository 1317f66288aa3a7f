import pytest
from click.testing import CliRunner


def test_the_table_goes_between_its_markers(tmp_path, script):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- demo:begin -->\nold\n<!-- demo:end -->\nb\n")
    script("demo").put(readme, "| new |\n")
    assert readme.read_text() == "a\n<!-- demo:begin -->\n| new |\n<!-- demo:end -->\nb\n"


@pytest.mark.slow
def test_the_demo_runs(tmp_path, script):
    result = CliRunner().invoke(script("demo").main, ["--folder", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    assert all(f"{bits} bits" in result.output for bits in (8, 4, 2))
