import pytest
import torch
from helpers.tiny_llama import llama


@pytest.fixture(autouse=True, scope='module')
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope='module', params=['sdpa', 'eager'])
def model(request):
    return llama(request.param)
