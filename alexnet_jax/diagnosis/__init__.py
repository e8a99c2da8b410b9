"""Diagnosis of training runs whose loss stays at chance level."""
