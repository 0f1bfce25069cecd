"""Right and wrong answers to the exercises of the course, by lesson."""
