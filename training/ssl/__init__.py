"""Self-distillation without labels: DINO, iBOT and KoLeo on many crops, against a slowly following teacher."""
