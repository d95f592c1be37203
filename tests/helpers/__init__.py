"""Code that tests share. Tests import it from here, never from another test."""
