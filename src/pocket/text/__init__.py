"""What is said about pictures: captions, descriptions, requests, answers, conversations."""
