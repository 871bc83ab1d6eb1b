"""Telegram: people's chats in and out; knows nothing of what is asked or answered there.

Nothing is imported here: aiogram takes 3 s, and only those that run a bot shall pay them.
"""
