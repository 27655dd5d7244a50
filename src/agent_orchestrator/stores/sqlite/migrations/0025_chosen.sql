-- The models and the effort that were chosen for the agent of a run: [effort, {provider: model}]. Others
-- may not be had by what it sets to work.
ALTER TABLE runs ADD COLUMN chosen TEXT;
UPDATE runs SET chosen = json_array(effort, json('{}')) WHERE effort IS NOT NULL;
