import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """Weights and data are the same in every run, and tiny products stay on one thread."""
    torch.manual_seed(11)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
