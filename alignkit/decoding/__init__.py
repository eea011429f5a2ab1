"""What chooses the next token: a decoder turns prompts into completions and says how likely it made them."""
