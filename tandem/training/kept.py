"""What training leaves in its folder to go on from; names alone, so that nobody needs JAX for them."""

CHECKPOINT = "training.safetensors"
PREVIOUS = "training.previous.safetensors"  # the one before
DAMAGED = ".damaged"  # behind the name of one that could not be read
EVERY = tuple(f"{name}{state}" for name in (CHECKPOINT, PREVIOUS) for state in ("", DAMAGED))
