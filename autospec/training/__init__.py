"""Making models: the corpus, the target's training, the draft's distillation, and the recipe that ties them."""
