//! Trouble that only the kernel sees moves the traffic to other pairs, and its end moves it back.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use router_tests::manifests::ENGINE_PORT;
use router_tests::site::bypass::{Question, around};
use router_tests::site::crowd::{Asked, Crowd, mean_ms, none_failed, share};
use router_tests::site::{Site, SiteEngine, SiteGateway, ask, enter, post, wait};

use crate::pace::{Pace, Slowness};

/// Time from the kernel's first event until traffic moves, and what this machine may take on top:
/// it runs everything on few CPUs, in a debug build. All bounds are for an idle machine; [`Pace`]
/// measures how much slower this one is.
const MOVES_WITHIN: Duration = Duration::from_millis(100);
const SLACK: Duration = Duration::from_millis(400);
/// How long trouble lasts, and the time after its end within which traffic is back where the kernel
/// shows the end. What was learned of a worker without requests must fade before it is tried again:
/// less than two seconds, and twice that where a trial falls into a stall of this machine.
const LASTS: Duration = Duration::from_secs(4);
const BACK_WITHIN: Duration = Duration::from_secs(2);
const TRIED_TWICE_WITHIN: Duration = Duration::from_secs(4);
/// Time after the end of trouble in which requests are counted, and after which a return is not
/// waited for any longer.
const COUNTED_AFTER: Duration = Duration::from_secs(5);
const WATCHED: Duration = Duration::from_secs(10);
/// Number of latest requests whose choices show how often a way is taken now.
const LATEST: usize = 20;
/// A difference between gateways with and without an agent must show in two of this many tries.
const TRIES: usize = 3;
/// Slowness of a machine from which on gateways with and without an agent are not compared. It is
/// 1.05 to 1.1 where two cores have a load of 4 to 8, and 1.4 to 1.5 at a load of 12.
const BUSY: f64 = 1.25;
/// Requests of each kind of gateway before trouble and during it, at least.
const MIN_REQUESTS: usize = 20;
/// Between two requests, of which a gateway gets every other one: far less than the fleet can do.
const EVERY: Duration = Duration::from_millis(50);
/// Slow enough that this machine can, fast enough for many choices a second.
const ENGINES: &str = "--prefill-tokens-per-second 20000 --inter-token-ms 4 \
                       --kv-bytes-per-token 2048";

/// More than a second of prefill each.
const HEAVY: Question = Question { prompt_bytes: 60_000, tokens: 1 };

/// For gateways that do not even read engines' loads.
const NO_ENGINE_LOADS: &str = "--engine-load-interval 1h";

/// What a link with a limit carries a second.
const LINK_BYTES: u64 = 40_000_000;

/// How often a way was chosen before, during and after trouble on it, by one kind of gateway.
#[derive(Clone, Debug)]
struct Course {
    before: f64,
    during: f64,
    /// Share of the requests that chose it in the first [`COUNTED_AFTER`] after the trouble.
    #[expect(dead_code, reason = "the log shows it")]
    after: f64,
    /// Times that it was chosen within a second of the begin: a way that looks bad is avoided.
    #[expect(dead_code, reason = "the log shows it")]
    at_first: usize,
    /// From the end of the trouble until it was chosen again at least half as often as before;
    /// nothing where that took longer than [`WATCHED`].
    back: Option<Duration>,
    /// Requests that began while it lasted, and those of them that took longer than [`HELD_UP`].
    begun: usize,
    held_up: usize,
    /// Mean time of requests during the trouble, those of the first moment apart.
    #[expect(dead_code, reason = "the log shows it")]
    during_ms: f64,
    /// How slow the machine was from the begin of the trouble on.
    slowness: Slowness,
}

impl Course {
    /// What became of all requests of one kind of gateway.
    fn new(
        all: &[Asked],
        chosen: &impl Fn(&Asked) -> bool,
        times: Times,
        (back, slowness): (Option<Duration>, Slowness),
    ) -> Course {
        let asked = |from: Instant, to: Instant| -> Vec<Asked> {
            all.iter().filter(|one| from <= one.at && one.at < to).cloned().collect()
        };
        let Times { begun, start, settled, over, ended } = times;
        let (before, during) = (asked(begun, start), asked(settled, over));
        for (name, part) in [("before", &before), ("during", &during)] {
            assert!(part.len() >= MIN_REQUESTS, "only {} requests {name}", part.len());
        }
        let hit = asked(start, over);
        let first = asked(start, start + Duration::from_secs(1));
        Course {
            before: share(&before, chosen),
            during: share(&during, chosen),
            after: share(&asked(ended, ended + COUNTED_AFTER), chosen),
            at_first: first.iter().filter(|one| chosen(one)).count(),
            back,
            begun: hit.len(),
            held_up: hit.iter().filter(|one| one.took > HELD_UP).count(),
            during_ms: mean_ms(&during),
            slowness,
        }
    }

    fn held_up_share(&self) -> f64 {
        self.held_up as f64 / self.begun.max(1) as f64
    }
}

/// Several times what a request takes without trouble.
const HELD_UP: Duration = Duration::from_secs(1);

/// Gateways of one kind: all with an agent, or all without.
type Kind<'g> = &'g [SiteGateway];

fn asked_of(kind: Kind<'_>, mut asked: Vec<Asked>) -> Vec<Asked> {
    asked.retain(|one| kind.iter().any(|gateway| gateway.address == one.gateway));
    asked
}

/// When trouble began and ended.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// Requests count as before the trouble from here on.
    begun: Instant,
    start: Instant,
    /// Traffic must have moved.
    settled: Instant,
    /// The end of the trouble begins, and is done.
    over: Instant,
    ended: Instant,
}

/// Two prefills and two decodes with trouble on one of them, and gateways in front of them. All
/// kinds of gateways see the same trouble on the same machine at the same time, so what differs
/// between their courses is not the machine's doing.
fn courses<const N: usize>(
    kinds: [Kind<'_>; N],
    crowd: Crowd,
    chosen: impl Fn(&Asked) -> bool,
    trouble: impl FnOnce() -> Box<dyn FnOnce()>,
) -> [Course; N] {
    let pace = Pace::start();
    crowd.until_more(40 * N);
    let begun = Instant::now();
    crowd.until_more(80 * N);
    let start = Instant::now();
    let end = trouble();
    let settled = start + pace.since(begun).stretch(MOVES_WITHIN + SLACK);
    wait("the trouble lasts", || {
        // A busy machine answers fewer requests a second.
        let during = crowd.between(settled, Instant::now());
        let enough = kinds.iter().all(|kind| asked_of(kind, during.clone()).len() >= MIN_REQUESTS);
        (start.elapsed() >= LASTS && enough).then_some(())
    });
    let over = Instant::now();
    end();
    let times = Times { begun, start, settled, over, ended: Instant::now() };
    let back = returns(kinds, &crowd, &chosen, (times, &pace));
    let slowness = pace.since(start);
    let all = crowd.end();
    none_failed(&all);
    for worker in ["prefill-0", "prefill-1", "decode-0", "decode-1"] {
        let load = kinds[0][0].load_of(worker);
        eprintln!("  {worker}: learned {}, load {}", load["learned"], load["load"]);
    }
    std::array::from_fn(|number| {
        let all = asked_of(kinds[number], all.clone());
        let course = Course::new(&all, &chosen, times, (back[number], slowness));
        steps(&all, &chosen, times);
        eprintln!("  gateways {number}: {course:.2?}");
        course
    })
}

/// Waits until each kind of gateways chooses a way again, for [`WATCHED`] at most; how long after
/// the end of the trouble that was.
fn returns<const N: usize>(
    kinds: [Kind<'_>; N],
    crowd: &Crowd,
    chosen: &impl Fn(&Asked) -> bool,
    (Times { begun, start, ended, .. }, pace): (Times, &Pace),
) -> [Option<Duration>; N] {
    let usual = kinds.map(|kind| share(&asked_of(kind, crowd.between(begun, start)), chosen));
    let mut back = [None; N];
    wait("traffic comes back", || {
        let asked = crowd.between(ended, Instant::now());
        for (number, kind) in kinds.into_iter().enumerate() {
            let first = || first_back(&asked_of(kind, asked.clone()), usual[number], chosen);
            let after = || first().map(|at| at.saturating_duration_since(ended));
            back[number] = back[number].or_else(after);
        }
        let elapsed = ended.elapsed();
        let all_are_back = back.iter().all(Option::is_some);
        let is_over = elapsed > pace.since(start).stretch(WATCHED);
        (elapsed >= COUNTED_AFTER && all_are_back || is_over).then_some(())
    });
    back
}

/// When a way is chosen again at least half as often as is usual, by the last few requests: when
/// the first of these was sent.
fn first_back(asked: &[Asked], usual: f64, chosen: &impl Fn(&Asked) -> bool) -> Option<Instant> {
    let last = asked.len().checked_sub(LATEST).map(|from| &asked[from..])?;
    let first = last.iter().filter(|one| chosen(one)).map(|one| one.at).min()?;
    (share(last, chosen) >= usual / 2.0).then_some(first)
}

/// Prints how often a way was chosen in the first steps of the trouble and after it.
fn steps(all: &[Asked], chosen: &impl Fn(&Asked) -> bool, times: Times) {
    for (what, at, step) in [("begin", times.start, 50), ("end", times.ended, 500)] {
        let parts = (0..8).map(|number| {
            let from = at + Duration::from_millis(step) * number;
            let to = from + Duration::from_millis(step);
            let part = all.iter().filter(|one| from <= one.at && one.at < to);
            let (there, elsewhere): (Vec<&Asked>, Vec<&Asked>) = part.partition(|one| chosen(one));
            format!("{} of {}", there.len(), there.len() + elsewhere.len())
        });
        let parts: Vec<String> = parts.collect();
        eprintln!("  from its {what}, each {step} ms: {}", parts.join(", "));
    }
}

fn site() -> Site {
    let mut site = Site::new();
    site.engine("prefill", true, ENGINES);
    site.engine("prefill", true, ENGINES);
    site.engine("decode", false, ENGINES);
    site.engine("decode", false, ENGINES);
    site
}

/// Gateways with an agent that has reported every worker's load.
fn gateways(site: &mut Site, flags: &str) -> Vec<SiteGateway> {
    site.agent(flags);
    let agent = format!("--agent {}", site.agent_address());
    let gateways = vec![site.gateway(&agent), site.gateway(&agent)];
    let workers = site.engines.len();
    gateways.iter().for_each(|gateway| gateway.until_loads_fresh(workers));
    gateways
}

/// Traffic moved away during the trouble, and came back in time after it.
fn moved_and_back(course: &Course, within: Duration) -> Result<(), String> {
    let in_time = |back| back <= course.slowness.stretch(within) + SLACK;
    let wrong = if course.before <= 0.1 {
        "it was not used before"
    } else if course.during >= course.before / 2.0 {
        "traffic did not move"
    } else if !course.back.is_some_and(in_time) {
        "traffic did not come back in time"
    } else {
        return Ok(());
    };
    Err(format!("{wrong}: {course:?}"))
}

/// A difference between gateways with and without an agent. On a busy machine every engine stalls by
/// more than the trouble does, and chance decides what gateways without an agent learn: a missing
/// difference is then printed and not judged.
fn compared(differs: bool, otherwise: &str, with: &Course, without: &Course) -> Result<(), String> {
    let problem = format!("{otherwise}: {with:?}, {without:?}");
    if differs {
        Ok(())
    } else if with.slowness.factor > BUSY {
        eprintln!("  this machine is too busy to compare: {problem}");
        Ok(())
    } else {
        Err(problem)
    }
}

/// Passes if most of [`TRIES`] tries do: chance decides some choices, and a stall of this machine
/// can spoil one try.
fn most_of(mut attempt: impl FnMut() -> Result<(), String>) {
    let (mut passed, mut failures) = (0, Vec::new());
    while passed <= TRIES / 2 {
        match attempt() {
            Ok(()) => passed += 1,
            Err(failure) => {
                eprintln!("  this try fails: {failure}");
                failures.push(failure);
            }
        }
        assert!(failures.len() <= TRIES / 2, "most of {TRIES} tries failed: {failures:#?}");
    }
}

fn address(site: &Site, name: &str) -> IpAddr {
    engine(site, name).pod.address
}

fn engine<'s>(site: &'s Site, name: &str) -> &'s SiteEngine {
    site.engines.iter().find(|engine| engine.name == name).expect("an engine of this name")
}

/// Trouble in front of two gateways that an agent reports to, and two without one, in front of the same
/// engines: these know their own leases, and with the flags `alone` more or less of what engines
/// report. The courses of both.
fn with_and_without(
    prepare: impl Fn(&Site),
    (flags, alone): (&str, &str),
    trial: impl Fn(&Site, [Kind<'_>; 2]) -> [Course; 2],
) -> [Course; 2] {
    let mut site = site();
    prepare(&site);
    let with = gateways(&mut site, flags);
    let without = [site.gateway(alone), site.gateway(alone)];
    trial(&site, [&with, &without])
}

fn load_around(site: &Site, kinds: [Kind<'_>; 2]) -> [Course; 2] {
    let (p, d) = (address(site, "prefill-0"), address(site, "decode-1"));
    let outside = site.node.outside.path();
    courses(
        kinds,
        Crowd::start(&kinds.concat(), 2),
        |one| one.prefill == "prefill-0",
        || {
            let stop = Arc::new(AtomicBool::new(false));
            let others: Vec<JoinHandle<()>> =
                (0..3).map(|_| around([p, d], HEAVY, outside.clone(), Arc::clone(&stop))).collect();
            Box::new(move || {
                stop.store(true, Ordering::Relaxed);
                others
                    .into_iter()
                    .for_each(|other| other.join().expect("requests past the gateways"));
            })
        },
    )
}

#[test]
fn requests_around_the_gateways_move_the_traffic_and_their_end_moves_it_back() {
    most_of(|| {
        let [with, without] = with_and_without(|_| (), ("", NO_ENGINE_LOADS), load_around);
        moved_and_back(&with, BACK_WITHIN)?;
        let differs = with.held_up_share() < without.held_up_share();
        compared(differs, "as many are held up with an agent", &with, &without)
    });
}

/// Fills what a pod sends with bytes for a machine outside, until `stop` is set.
fn fill(site: &Site, name: &str, stop: Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let engine = engine(site, name);
    let at = SocketAddr::new(site.node.ip(250, 2), 7_000);
    let listener = site.node.outside.run(move || TcpListener::bind(at).expect("binding"));
    let sender = engine.pod.netns.run(move || TcpStream::connect(at).expect("connecting"));
    let (receiver, _) = listener.accept().expect("accepting");
    let sends = std::thread::spawn(move || {
        let (mut sender, block) = (sender, vec![7; 1 << 16]);
        while !stop.load(Ordering::Relaxed) {
            sender.write_all(&block).expect("sending");
        }
    });
    let receives = std::thread::spawn(move || {
        let (mut receiver, mut block) = (receiver, vec![0; 1 << 16]);
        while receiver.read(&mut block).expect("receiving") > 0 {}
    });
    vec![sends, receives]
}

fn filled_link(site: &Site, kinds: [Kind<'_>; 2]) -> [Course; 2] {
    courses(
        kinds,
        Crowd::arriving(&kinds.concat(), EVERY),
        |one| one.prefill == "prefill-0",
        || {
            let stop = Arc::new(AtomicBool::new(false));
            let threads = fill(site, "prefill-0", Arc::clone(&stop));
            Box::new(move || {
                stop.store(true, Ordering::Relaxed);
                threads.into_iter().for_each(|thread| thread.join().expect("a transfer"));
            })
        },
    )
}

#[test]
fn a_bulk_transfer_that_fills_a_link_moves_the_traffic_and_its_end_moves_it_back() {
    let limit = |site: &Site| {
        for name in ["prefill-0", "prefill-1"] {
            engine(site, name).impairment.as_ref().expect("a wired pod").limit(LINK_BYTES);
        }
    };
    let megabits = LINK_BYTES * 8 / 1_000_000;
    let speeds = format!("--link-speed veth2={megabits} --link-speed veth3={megabits}");
    most_of(|| {
        let [with, without] = with_and_without(limit, (&speeds, ""), filled_link);
        moved_and_back(&with, BACK_WITHIN)?;
        let differs = with.during < without.during / 2.0;
        compared(differs, "it is avoided without an agent too", &with, &without)
    });
}

fn slow_engine(site: &Site, kinds: [Kind<'_>; 2]) -> [Course; 2] {
    let at = SocketAddr::new(address(site, "decode-0"), ENGINE_PORT);
    let outside = site.node.outside.path();
    let script = move |path: &'static str, body: &str| {
        let (request, outside) = (post(path, body), outside.clone());
        let sent = std::thread::spawn(move || {
            enter(&outside);
            ask(at, &request).expect("the engine's answer")
        });
        let (head, body) = sent.join().expect("a thread");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
    };
    let end = script.clone();
    courses(
        kinds,
        Crowd::arriving(&kinds.concat(), EVERY),
        |one| one.decode == "decode-0",
        || {
            script("/sim/script", r#"{"match":{},"action":{"slow":6.0},"times":0}"#);
            Box::new(move || end("/sim/reset", "{}"))
        },
    )
}

#[test]
fn an_engine_that_slows_down_loses_traffic() {
    // Gateways without an agent see it too, by their own answers, and send it more until they do.
    most_of(|| {
        let [with, without] = with_and_without(|_| (), ("", ""), slow_engine);
        moved_and_back(&with, TRIED_TWICE_WITHIN)?;
        let differs = with.during <= without.during / 2.0;
        compared(differs, "it loses as much without an agent", &with, &without)
    });
}

fn bad_pair(site: &Site, gateways: Kind<'_>) -> Course {
    let (crowd, begun) = (Crowd::arriving(gateways, EVERY), Instant::now());
    crowd.until_more(60);
    // The pair that is used most: idle engines that differ by a little are not used alike.
    let asked = crowd.between(begun, Instant::now());
    let uses = |pair: &(String, String)| {
        asked.iter().filter(|one| (&one.prefill, &one.decode) == (&pair.0, &pair.1)).count()
    };
    let pairs = asked.iter().map(|one| (one.prefill.clone(), one.decode.clone()));
    let (prefill, decode) = pairs.max_by_key(uses).expect("requests");
    let trouble = engine(site, &prefill).impairment.clone().expect("a wired pod");
    let IpAddr::V4(peer) = address(site, &decode) else { panic!("IPv4") };
    let pair = |one: &Asked| one.prefill == prefill && one.decode == decode;
    let [course] = courses([gateways], crowd, pair, || {
        trouble.between(peer, Duration::from_millis(60), 20);
        Box::new(move || trouble.end())
    });
    course
}

#[test]
fn delay_and_loss_between_one_pair_move_the_traffic_to_other_pairs() {
    most_of(|| {
        let mut site = site();
        let with = gateways(&mut site, "");
        moved_and_back(&bad_pair(&site, &with), TRIED_TWICE_WITHIN)
    });
    // Gateways without an agent avoid it too, by how long their requests took: the log shows it.
    eprintln!("  without an agent:");
    let mut site = site();
    let alone = [site.gateway(""), site.gateway("")];
    bad_pair(&site, &alone);
}
