"""spectrum"""
