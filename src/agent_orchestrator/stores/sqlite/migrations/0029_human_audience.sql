-- Requests say `human`, as the policy `ask-human` does, where they said `people`.

UPDATE requests SET audience = 'human' WHERE audience = 'people';
