"""What a denoiser is worth where few images have masks: arms x labelled draws x seeds, fitted and compared."""
