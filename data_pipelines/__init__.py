"""Offline jobs that write the training format. They import embedtrain; embedtrain imports none of them."""
