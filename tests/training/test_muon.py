"""Our Muon is torch's, in the gradients' own precision."""

import torch

from training.learning.muon import Muon, orthogonalised


def test_singular_values_become_about_equal() -> None:
    torch.manual_seed(0)
    for shape in ((24, 64), (64, 24), (32, 32)):
        matrix = torch.randn(shape)
        before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonalised(matrix))
        assert before.max() / before.min() > 3
        assert after.dtype == torch.float32 and after.max() < 1.3
        assert after.median() > 0.6


def test_steps_are_those_of_torch() -> None:
    torch.manual_seed(1)
    start, grads = torch.randn(24, 64), torch.randn(6, 24, 64)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        (ours, Muon([ours], 0.02, weight_decay=0.01)),
        (theirs, torch.optim.Muon([theirs], 0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")),
    ]
    for grad in grads:
        for weight, optimizer in optimizers:
            weight.grad = grad.clone()
            optimizer.step()
    moved = float((theirs - start).detach().norm())
    assert float((ours - theirs).detach().norm()) < 0.02 * moved  # what bfloat16 rounds
    assert moved > 0.5


def test_its_memory_survives_a_checkpoint() -> None:
    torch.manual_seed(2)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    first = Muon([weight], 0.1)
    weight.grad = torch.randn(8, 8)
    first.step()
    second = Muon([weight], 0.1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[weight]["momentum_buffer"], first.state[weight]["momentum_buffer"])
