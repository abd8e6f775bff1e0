"""Networks built from the bricks: the plan, the U-Net that walks it."""
