"""What a kind of task's predictions are worth: each evaluator turns examples and prediction lines into `Scores`."""
