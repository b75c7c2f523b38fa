"""The parts of `tools/train_demo.py`: tokenizer, models and their growing, training sequences, evaluation."""
