"""The sections of `make torture`: each tries to break a promise of docs/reliability.md, over and over."""
