-- Options of requests were texts. What they allow was in the detail.
ALTER TABLE requests ADD COLUMN option TEXT;

UPDATE requests SET option = trim(answer, char(32, 9, 10, 13))
WHERE status = 'answered' AND trim(answer, char(32, 9, 10, 13)) IN (SELECT value FROM json_each(options));

UPDATE requests SET options = (
    SELECT json_group_array(json_object(
        'id', value, 'label', value, 'kind', 'answer', 'reaches', detail -> 'reaches' ->> value
    )) FROM json_each(options)
) WHERE options != 'null';
