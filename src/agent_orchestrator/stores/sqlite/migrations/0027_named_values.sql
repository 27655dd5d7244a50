-- Values that are kept as JSON have the names of their fields: they were lists, read by place.
UPDATE runs SET usage = json_object(
    'input_tokens', json(usage -> 0), 'cached_input_tokens', json(usage -> 1),
    'output_tokens', json(usage -> 2), 'cost_usd', json(usage -> 3)
) WHERE usage IS NOT NULL;
UPDATE runs SET chosen = json_object('effort', json(chosen -> 0), 'models', json(chosen -> 1))
WHERE chosen IS NOT NULL;
UPDATE attempts SET invocation = json_object(
    'command', json(invocation -> 0), 'argv', json(invocation -> 1), 'cwd', json(invocation -> 2),
    'profile', json(invocation -> 3), 'extra_args', json(invocation -> 4)
) WHERE invocation IS NOT NULL;
UPDATE messages SET images = (
    SELECT json_group_array(json_object(
        'media_type', json(value -> 0), 'size', json(value -> 1), 'digest', json(value -> 2)
    )) FROM json_each(images)
) WHERE images IS NOT NULL;
