"""The parts of an evaluation: matching, average precision, reliability, and what a person should look at."""
