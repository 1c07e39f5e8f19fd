"""Instruments for prompt optimization: does the reflection look at the errors, does the model follow the prompt?"""
