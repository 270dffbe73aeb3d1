"""What an answer is worth, judged against the exact truth of its picture."""
