"""`python -m llmq` is the `llmq` command."""

from llmq.cli.entry import run

if __name__ == "__main__":
    run()
