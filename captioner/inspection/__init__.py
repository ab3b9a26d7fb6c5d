"""Looking inside a trained model: equations in numbers, what depends on what, pages."""
