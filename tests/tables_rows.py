"""Rows of pairs of minima whose tables can be counted."""

from gengap import origins

ORIGIN = {
    "commit": "abc123", "training_version": origins.TRAINING_VERSION, "jax": "0.10.2", "device": "cpu, 2 cores",
    "date": "2026-11-25", "seconds": 1.5,
}  # fmt: skip


def row(network, side, seed, full, draws, *, dataset="mnist", test=0.98, **changed):
    """A row whose sharpness at epsilon 5e-4 is a quarter of that at 1e-3."""
    history = {f"{split}_accuracy": [0.5, 0.9, test] for split in ("train", "test")}
    return {
        "network": network, "dataset": dataset, "side": side, "seed": seed, "batch_size": 256,
        "epochs": 3, "steps": 30, "diverged_at": None, "train_loss": 0.25, "train_accuracy": 0.99,
        "test_loss": 0.5, "test_accuracy": test, "distance": 12.0 if side == "SB" else 4.0, "history": history,
        "origin": ORIGIN, "sharpness_full_1e-3": full, "sharpness_full_5e-4": full / 4,
        "sharpness_random_1e-3": sum(draws) / len(draws), "sharpness_random_5e-4": sum(draws) / len(draws) / 4,
        **changed,
    }  # fmt: skip


def pairs():
    """Full space: means 2 and 200, standard deviations 1 and 100; random subspaces: 0.5 and 5, no spread."""
    small = [row("F1", "SB", seed, 1.0 + seed, [0.25, 0.75], test=0.98) for seed in range(3)]
    large = [row("F1", "LB", seed, 100.0 + 100 * seed, [4.0, 6.0], test=0.97) for seed in range(3)]
    return small + large
