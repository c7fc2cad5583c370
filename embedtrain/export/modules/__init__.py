"""Files that leave the house: a module that travels with exported models, and the program that reloads them."""
