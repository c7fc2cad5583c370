"""Several models as one.

models --inputs, compatibility--> folders of one kind --states, one tensor of each at a time--> merged folder --export--> model
"""
