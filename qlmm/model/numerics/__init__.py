"""How weights are stored and computed with: precision and quantisation, below everything that loads a model."""
