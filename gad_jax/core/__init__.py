"""GAD itself: the paper's equations, the losses, the compiled steps, and packed rows."""
