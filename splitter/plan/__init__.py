"""What a model is cut into: the plan, where a stage is cut, and layouts compared."""
