"""The Telegram bot. Nothing is imported here: aiogram takes 3 s, only gateways with a bot import it."""
