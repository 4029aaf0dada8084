//! Trouble that only the kernel sees moves the traffic to other pairs, and its end moves it back.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use router_tests::manifests::ENGINE_PORT;

use crate::around::{Question, around};
use crate::crowd::{Asked, Crowd, mean_ms, none_failed, share};
use crate::site::{Engine, Gateway, Site, ask, enter, post, wait};

/// What the kernel's events may take to move the traffic, and what this machine may take on top:
/// it runs everything at once on few CPUs, in a debug build.
const MOVES_WITHIN: Duration = Duration::from_millis(100);
const SLACK: Duration = Duration::from_millis(400);
/// How long trouble lasts, and within which time of its end traffic is back where the kernel shows
/// it. What was learned of a way that nobody takes must fade before it is tried again: less than two seconds
/// after such trouble too, and twice that where a trial falls into a moment in which the machine stalls.
const LASTS: Duration = Duration::from_secs(4);
const BACK_WITHIN: Duration = Duration::from_secs(2);
const TRIED_TWICE_WITHIN: Duration = Duration::from_secs(4);
/// Nobody waits any longer.
const WATCHED: Duration = Duration::from_secs(10);
/// So many requests say how often a way is taken now.
const TELLING: usize = 20;
/// Between two requests, of which a gateway gets every other one: far less than the fleet can do.
const EVERY: Duration = Duration::from_millis(50);
/// Slow enough that this machine can, fast enough for many choices a second.
const ENGINES: &str = "--prefill-tokens-per-second 20000 --inter-token-ms 4 \
                       --kv-bytes-per-token 2048";

/// More than a second of prefill each.
const HEAVY: Question = Question { prompt_bytes: 60_000, tokens: 1 };

/// For gateways that not even engines tell of others' requests.
const UNTOLD: &str = "--engine-load-interval 1h";

/// What a link with a limit carries a second.
const LINK_BYTES: u64 = 40_000_000;

/// How often a way was chosen before and during trouble on it, and when again after.
#[derive(Debug)]
struct Course {
    before: f64,
    during: f64,
    /// Chosen all the same within a second of its begin: a way that looks bad is avoided.
    at_first: usize,
    /// From the end of the trouble until it was chosen again at least half as often; nothing where
    /// that took longer than anybody waited.
    back: Option<Duration>,
    /// Requests that began while it lasted, and those of them that it held up.
    begun: usize,
    held_up: usize,
    /// Their mean time, the ones of the first moment apart.
    during_ms: f64,
}

/// Several times what a request takes without trouble.
const HELD_UP: Duration = Duration::from_secs(1);

/// Two gateways before two prefills and two decodes, and trouble on one of them.
fn course(
    gateways: &[Gateway],
    crowd: Crowd,
    chosen: impl Fn(&Asked) -> bool,
    trouble: impl FnOnce() -> Box<dyn FnOnce()>,
) -> Course {
    crowd.until_more(40);
    let begun = Instant::now();
    crowd.until_more(80);
    let start = Instant::now();
    let end = trouble();
    wait("the trouble lasts", || (start.elapsed() >= LASTS).then_some(()));
    let over = Instant::now();
    end();
    let ended = Instant::now();
    let before = crowd.between(begun, start);
    let usual = share(&before, &chosen);
    let back = wait("traffic comes back", || {
        if ended.elapsed() > WATCHED {
            return Some(None);
        }
        // By the last few that were answered: as soon as these are as many as half of before.
        let asked = crowd.between(ended, Instant::now());
        let last = asked.len().checked_sub(TELLING).map(|from| &asked[from..])?;
        let first = last.iter().filter(|one| chosen(one)).map(|one| one.at).min()?;
        (share(last, &chosen) >= usual / 2.0).then(|| Some(first.saturating_duration_since(ended)))
    });
    let all = crowd.end();
    none_failed(&all);
    let asked = |from: Instant, to: Instant| -> Vec<Asked> {
        all.iter().filter(|one| from <= one.at && one.at < to).cloned().collect()
    };
    let during = asked(start + MOVES_WITHIN + SLACK, over);
    for worker in ["prefill-0", "prefill-1", "decode-0", "decode-1"] {
        let told = gateways[0].load_of(worker);
        eprintln!("  {worker}: learned {}, load {}", told["learned"], told["load"]);
    }
    for (name, one) in [("before", &before), ("during", &during)] {
        assert!(one.len() >= 20, "only {} requests {name}", one.len());
    }
    steps(&all, &chosen, start, ended);
    let hit = asked(start, over);
    let first = asked(start, start + Duration::from_secs(1));
    let course = Course {
        at_first: first.iter().filter(|one| chosen(one)).count(),
        begun: hit.len(),
        held_up: hit.iter().filter(|one| one.took > HELD_UP).count(),
        before: usual,
        during: share(&during, &chosen),
        back,
        during_ms: mean_ms(&during),
    };
    let Course { before, during, at_first, back, begun, held_up, during_ms } = &course;
    eprintln!(
        "  chosen {before:.2} before, {at_first} times in the first second, {during:.2} during, back \
         after {back:.1?}; {held_up} of {begun} held up, {during_ms:.0} ms a request"
    );
    course
}

/// The first steps of both ways, for whoever reads the log.
fn steps(all: &[Asked], chosen: &impl Fn(&Asked) -> bool, start: Instant, ended: Instant) {
    for (what, at, step) in [("begin", start, 50), ("end", ended, 500)] {
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

/// Gateways that listen to the agent, with every load told.
fn gateways(site: &mut Site, flags: &str) -> Vec<Gateway> {
    site.agent(flags);
    let agent = format!("--agent {}", site.agent_address());
    let gateways = vec![site.gateway(&agent), site.gateway(&agent)];
    let workers = site.engines.len();
    gateways.iter().for_each(|gateway| gateway.until_told(workers));
    gateways
}

fn moved_and_back(course: &Course, within: Duration) {
    assert!(course.before > 0.1, "it was not used before: {course:?}");
    assert!(course.during < course.before / 2.0, "traffic did not move: {course:?}");
    let in_time = course.back.is_some_and(|back| back <= within + SLACK);
    assert!(in_time, "traffic did not come back: {course:?}");
}

fn address(site: &Site, name: &str) -> IpAddr {
    engine(site, name).pod.address
}

fn engine<'s>(site: &'s Site, name: &str) -> &'s Engine {
    site.engines.iter().find(|engine| engine.name == name).expect("an engine of this name")
}

fn load_around(site: &Site, gateways: &[Gateway]) -> Course {
    let (p, d) = (address(site, "prefill-0"), address(site, "decode-1"));
    let outside = site.node.outside.path();
    course(
        gateways,
        Crowd::start(gateways, 3),
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

/// The same trouble before gateways that an agent tells, and before gateways without one: these
/// know their own leases, and with `alone` more or less of what engines tell.
fn with_and_without(
    prepare: impl Fn(&Site),
    (flags, alone): (&str, &str),
    trial: impl Fn(&Site, &[Gateway]) -> Course,
) -> [Course; 2] {
    let mut site = site();
    prepare(&site);
    let told = gateways(&mut site, flags);
    let with = trial(&site, &told);
    drop(site);
    eprintln!("  without an agent:");
    let mut site = self::site();
    prepare(&site);
    let alone = [site.gateway(alone), site.gateway(alone)];
    let without = trial(&site, &alone);
    [with, without]
}

#[test]
fn requests_around_the_gateways_move_the_traffic_and_their_end_moves_it_back() {
    let [with, without] = with_and_without(|_| (), ("", UNTOLD), load_around);
    moved_and_back(&with, BACK_WITHIN);
    assert!(with.held_up < without.held_up, "no difference: {with:?}, {without:?}");
}

/// Fills what a pod sends with bytes for a machine outside, until told to stop.
fn fill(site: &Site, name: &str, stop: Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let engine = engine(site, name);
    let at = SocketAddr::new(site.node.ip(250, 2), 7_000);
    let listener = site.node.outside.run(move || TcpListener::bind(at).expect("binding"));
    let sender = engine.pod.space.run(move || TcpStream::connect(at).expect("connecting"));
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

fn filled_link(site: &Site, gateways: &[Gateway]) -> Course {
    course(
        gateways,
        Crowd::arriving(gateways, EVERY),
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
            engine(site, name).trouble.as_ref().expect("a wired pod").limit(LINK_BYTES);
        }
    };
    let megabits = LINK_BYTES * 8 / 1_000_000;
    let speeds = format!("--link-speed veth2={megabits} --link-speed veth3={megabits}");
    let [with, without] = with_and_without(limit, (&speeds, ""), filled_link);
    moved_and_back(&with, BACK_WITHIN);
    assert!(with.during < without.during / 2.0, "no difference: {with:?}, {without:?}");
}

fn slow_engine(site: &Site, gateways: &[Gateway]) -> Course {
    let at = SocketAddr::new(address(site, "decode-0"), ENGINE_PORT);
    let outside = site.node.outside.path();
    let script = move |path: &'static str, body: &str| {
        let (request, outside) = (post(path, body), outside.clone());
        let told = std::thread::spawn(move || {
            enter(&outside);
            ask(at, &request).expect("the engine's answer")
        });
        let (head, body) = told.join().expect("a thread");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
    };
    let end = script.clone();
    course(
        gateways,
        Crowd::arriving(gateways, EVERY),
        |one| one.decode == "decode-0",
        || {
            script("/sim/script", r#"{"match":{},"action":{"slow":6.0},"times":0}"#);
            Box::new(move || end("/sim/reset", "{}"))
        },
    )
}

#[test]
fn an_engine_that_slows_down_loses_traffic() {
    // Without an agent gateways see it too, by their own answers, and not that it is over.
    let [with, without] = with_and_without(|_| (), ("", ""), slow_engine);
    moved_and_back(&with, TRIED_TWICE_WITHIN);
    assert!(without.back.is_none_or(|back| Some(back) > with.back), "{with:?}, {without:?}");
}

fn bad_pair(site: &Site, gateways: &[Gateway]) -> Course {
    let (crowd, begun) = (Crowd::arriving(gateways, EVERY), Instant::now());
    crowd.until_more(60);
    // The pair that is used most: idle engines that differ by a little are not used alike.
    let asked = crowd.between(begun, Instant::now());
    let uses = |pair: &(String, String)| {
        asked.iter().filter(|one| (&one.prefill, &one.decode) == (&pair.0, &pair.1)).count()
    };
    let pairs = asked.iter().map(|one| (one.prefill.clone(), one.decode.clone()));
    let (prefill, decode) = pairs.max_by_key(uses).expect("requests");
    let trouble = engine(site, &prefill).trouble.clone().expect("a wired pod");
    let IpAddr::V4(peer) = address(site, &decode) else { panic!("IPv4") };
    let pair = |one: &Asked| one.prefill == prefill && one.decode == decode;
    course(gateways, crowd, pair, || {
        trouble.between(peer, Duration::from_millis(60), 20);
        Box::new(move || trouble.end())
    })
}

#[test]
fn delay_and_loss_between_one_pair_move_the_traffic_to_other_pairs() {
    // Without an agent gateways avoid it too, by how long their requests took: what becomes of it then is in
    // the log.
    let [with, _] = with_and_without(|_| (), ("", ""), bad_pair);
    moved_and_back(&with, TRIED_TWICE_WITHIN);
}
