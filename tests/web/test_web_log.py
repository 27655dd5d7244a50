"""The log of a session that is read from its end: in whatever parts, it is the same story."""

from daemons import Daemon
from pace import allowed
from playwright.sync_api import expect
from visits import Visit

PARTS = """async ([seed, count]) => {
  const { Log } = await import("./web/app/log.js");
  const { prepend } = await import("./web/app/prepend.js");
  let state = seed;
  const random = (below) => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return Math.floor((state / 2147483648) * below);
  };
  const one = (...choices) => choices[random(choices.length)];
  let current = 0;
  let begun = -1;
  const event = (seq) => {
    // Runs come one after the other, each with its message.
    const run = `run${current}`;
    const item_id = `item${random(4)}`;
    const tool_id = `tool${random(3)}`;
    const id = `req${random(3)}`;
    const tool = { tool_id, kind: "command", name: "shell", input: { command: "ls" } };
    const text = one("a", "b", "c");
    const isFirst = begun !== current;
    begun = current;
    const [event_type, data] = isFirst ? ["message.created", { message_id: `msg${current}`, text, role: "user", source: null }] : one(
      ["run.queued", { message_id: `msg${current}` }],
      ["run.started", {}], ["run.waiting", {}], ["run.resumed", {}],
      ["agent.message.delta", { item_id, text }], ["agent.message.delta", { item_id, text }],
      ["agent.message", { item_id, text }], ["agent.reasoning", { item_id, text }],
      ["tool.started", tool], ["tool.output", { tool_id, text }],
      ["tool.completed", { ...tool, status: one("completed", "failed"), output: text }],
      ["file.changed", { tool_id, changes: [{ path: text }], status: "completed" }],
      ["plan.updated", { steps: [{ text, status: "pending" }] }],
      ["request.created", { id, text, status: "pending", detail: { a: 1 }, options: [1] }],
      ["request.resolved", { id, text, status: one("approved", "denied"), ...one({ detail: { a: 1 }, options: [1] }, { cut: ["detail"] }) }],
      ["child.spawned", { session_id: `ses${random(2)}`, task: text }],
      one(["run.started", {}], ["run.completed", { result: { text }, usage: null }], ["run.failed", { error: { code: "x", message: text } }]),
      ["session.updated", { title: text }],
    );
    if (/^run.(completed|failed)$/.test(event_type)) current++;
    return { seq, session_id: "s", run_id: run, attempt: 1, event_type, data, created_at: `at ${seq}` };
  };
  const shown = (log) => JSON.stringify({
    items: log.items.map(({ rev, ...rest }) => Object.fromEntries(Object.entries(rest).filter(([, value]) => value != null).sort())),
    runs: [...log.runs].sort(), plan: log.plan, said: [...log.said].map(([run, item]) => [run, item.key]).sort(),
    seqs: log.events.map(({ seq }) => seq), keys: [...log.byKey.keys()].sort(),
  });
  const differing = [];
  for (let number = 0; number < count; number++) {
    begun = -1;
    const events = Array.from({ length: 2 + random(60) }, (_, index) => event(index + 1));
    const whole = new Log("s");
    whole.append(events);
    let parts = new Log("s");
    let end = events.length;
    while (end > 0) {
      const begin = Math.max(0, end - 1 - random(20));
      const earlier = new Log("s");
      earlier.append(events.slice(begin, end));
      if (end === events.length) parts = earlier;
      else prepend(earlier, parts);
      end = begin;
    }
    if (shown(parts) !== shown(whole)) differing.push([number, shown(whole), shown(parts), JSON.stringify(events.map(({ seq, run_id, event_type, data }) => [seq, run_id, event_type, data]))]);
  }
  return differing.sort((a, b) => a[3].length - b[3].length);
}"""
"""Reduce random logs at once and from the end in parts; return those where the results differ, the shortest first."""


def test_log_that_is_read_in_parts_is_the_same(shared: Daemon, visit: Visit) -> None:
    page = visit.open(f"{shared.url}/")
    differing = page.evaluate(PARTS, [20261130, 2000])
    assert not differing, (len(differing), *differing[0])


COST = """async (count) => {
  const { Log } = await import("./web/app/log.js");
  const { prepend } = await import("./web/app/prepend.js");
  const part = (first, length) => {
    const log = new Log("s");
    log.append(Array.from({ length }, (_, n) => ({
      seq: first + n, session_id: "s", run_id: `run${first + n}`, attempt: 1, created_at: "",
      ...((first + n) % 2 ? { event_type: "agent.message", data: { text: "x", item_id: "i" } } : { event_type: "run.completed", data: { result: { text: "y" } } }),
    })));
    return log;
  };
  const log = part(count, count);
  const took = [];
  for (let number = 0; number < 9; number++) {
    const earlier = part(log.before - 999, 1000);
    const began = performance.now();
    prepend(earlier, log);
    took.push(performance.now() - began);
  }
  return [log.items.length, took.sort((a, b) => a - b)[4]];
}"""


def test_earlier_events_cost_little_in_a_log_of_100_000(shared: Daemon, visit: Visit) -> None:
    page = visit.open(f"{shared.url}/")
    items, took = page.evaluate(COST, 100_000)
    assert items == 109_000
    # The half of nine: other load on the machine interrupts some.
    assert took < allowed(0.03) * 1000


READ = """async ([id, known]) => {
  const { Log } = await import("./web/app/log.js");
  const log = new Log(id);
  log.oldest = known;
  await log.load(0);
  return [log.oldest, log.before, log.events.map(({ seq }) => seq)];
}"""


def test_log_is_read_from_the_oldest_event_that_is_kept(shared: Daemon, visit: Visit) -> None:
    session = shared.begin([])
    shared.wait_idle(session)
    page = visit.open(f"{shared.url}/#/s/{session}")
    last = shared.get(f"/sessions/{session}")["session"]["last_seq"]
    assert page.evaluate(READ, [session, 0]) == [0, 0, [*range(1, last + 1)]]
    oldest = 0
    for kept in (4, 2):
        known, oldest = oldest, last - kept
        shared.post(f"/sessions/{session}/prune", retain_events=kept)
        # The page was told of an older one, or of none.
        assert page.evaluate(READ, [session, known]) == [oldest, 0, [*range(oldest + 1, last + 1)]]
    page.reload()
    expect(page.locator(".story")).to_contain_text("Earlier entries are no longer kept")
