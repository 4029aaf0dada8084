//! Trouble that only the kernel sees moves the traffic to other pairs, and its end moves it back.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use router_tests::manifests::{BOOTSTRAP_PORT, ENGINE_PORT};

use crate::crowd::{Asked, Crowd, mean_ms, none_failed, prompt, share};
use crate::site::{Engine, Gateway, Site, ask, enter, post, wait};

/// What the kernel's events may take to move the traffic, and what this machine may take on top:
/// it runs everything at once on few CPUs, in a debug build.
const MOVES_WITHIN: Duration = Duration::from_millis(100);
const SLACK: Duration = Duration::from_millis(400);
/// How long trouble lasts, and within which time of its end traffic is back where the kernel shows
/// it. What was learned of a way that nobody takes must fade before it is tried again, which takes up
/// to about as long as the trouble lasted (4.1 s were seen); the rest is for a machine that stalls.
const LASTS: Duration = Duration::from_secs(4);
const BACK_WITHIN: Duration = Duration::from_secs(2);
const TRIED_AGAIN_WITHIN: Duration = Duration::from_secs(15);
/// So many requests say how often a way is taken now.
const TELLING: usize = 30;
/// Slow enough that this machine can, fast enough for many choices a second.
const ENGINES: &str = "--prefill-tokens-per-second 20000 --inter-token-ms 4 \
                       --kv-bytes-per-token 2048";

/// What a link with a limit carries a second.
const LINK_BYTES: u64 = 40_000_000;

/// How often a way was chosen before and during trouble on it, and when again after.
#[derive(Debug)]
struct Course {
    before: f64,
    during: f64,
    /// From the end of the trouble until it was chosen again at least half as often.
    back: Duration,
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
    chosen: impl Fn(&Asked) -> bool,
    trouble: impl FnOnce() -> Box<dyn FnOnce()>,
) -> Course {
    let crowd = Crowd::start(gateways, 3);
    crowd.until_more(60);
    let begun = Instant::now();
    crowd.until_more(120);
    let start = Instant::now();
    let end = trouble();
    wait("the trouble lasts", || (start.elapsed() >= LASTS).then_some(()));
    let over = Instant::now();
    end();
    let ended = Instant::now();
    let moved = start + MOVES_WITHIN + SLACK;
    let (before, during) = (crowd.between(begun, start), crowd.between(moved, over));
    let usual = share(&before, &chosen);
    let back = wait("traffic comes back", || {
        // By the last few that were answered: as soon as these are as many as half of before.
        let asked = crowd.between(ended, Instant::now());
        let last = asked.len().checked_sub(TELLING).map(|from| &asked[from..])?;
        let first = last.iter().map(|one| one.at).min()?;
        (share(last, &chosen) >= usual / 2.0).then(|| first.saturating_duration_since(ended))
    });
    let all = crowd.end();
    none_failed(&all);
    for worker in ["prefill-0", "prefill-1", "decode-0", "decode-1"] {
        let told = gateways[0].load_of(worker);
        eprintln!("  {worker}: learned {}, load {}", told["learned"], told["load"]);
    }
    for (name, one) in [("before", &before), ("during", &during)] {
        assert!(one.len() >= 20, "only {} requests {name}", one.len());
    }
    // The first steps of the way, for whoever reads the log.
    for step in 0..8 {
        let from = start + Duration::from_millis(50) * step;
        let to = from + Duration::from_millis(50);
        let part: Vec<&Asked> = all.iter().filter(|one| from <= one.at && one.at < to).collect();
        let there = part.iter().filter(|one| chosen(one)).count();
        eprintln!("  {:>3} ms after its begin: {there} of {}", 50 * step, part.len());
    }
    let hit: Vec<&Asked> = all.iter().filter(|one| start <= one.at && one.at < over).collect();
    let course = Course {
        begun: hit.len(),
        held_up: hit.iter().filter(|one| one.took > HELD_UP).count(),
        before: usual,
        during: share(&during, &chosen),
        back,
        during_ms: mean_ms(&during),
    };
    let Course { before, during, back, begun, held_up, during_ms } = &course;
    eprintln!(
        "  chosen {before:.2} before, {during:.2} during, back after {back:.1?}; {held_up} of {begun} \
         held up, {during_ms:.0} ms a request"
    );
    course
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
    assert!(course.back <= within + SLACK, "traffic did not come back: {course:?}");
}

/// A request past the gateways: both legs, each to its engine, as another router would.
fn around(
    prefill: IpAddr,
    decode: IpAddr,
    outside: String,
    stop: Arc<AtomicBool>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        enter(&outside);
        while !stop.load(Ordering::Relaxed) {
            let body = serde_json::json!({
                "text": prompt(60_000),
                "sampling_params": {"max_new_tokens": 1, "ignore_eos": true},
                "bootstrap_host": prefill.to_string(),
                "bootstrap_port": BOOTSTRAP_PORT,
                "bootstrap_room": room(),
            });
            let request = post("/generate", &body.to_string());
            let legs = [prefill, decode].map(|engine| {
                let (request, outside) = (request.clone(), outside.clone());
                std::thread::spawn(move || {
                    enter(&outside);
                    ask(SocketAddr::new(engine, ENGINE_PORT), &request).map(|(head, _)| head)
                })
            });
            for leg in legs {
                let head = leg.join().expect("a leg").expect("an engine's answer");
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            }
        }
    })
}

/// Different for every call: the hash of nothing, by keys that the standard library draws.
fn room() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0) >> 1
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
        |one| one.prefill == "prefill-0",
        || {
            let stop = Arc::new(AtomicBool::new(false));
            let others: Vec<JoinHandle<()>> =
                (0..3).map(|_| around(p, d, outside.clone(), Arc::clone(&stop))).collect();
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
    let mut site = site();
    let told = gateways(&mut site, "");
    let with = load_around(&site, &told);
    moved_and_back(&with, BACK_WITHIN);
    drop(told);
    // The same without anybody who tells: gateways know their own leases, and ask engines too
    // rarely to see anything in time.
    let mut site = self::site();
    let alone = "--engine-load-interval 1h";
    let gateways = [site.gateway(alone), site.gateway(alone)];
    let without = load_around(&site, &gateways);
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

#[test]
fn a_bulk_transfer_that_fills_a_link_moves_the_traffic_and_its_end_moves_it_back() {
    let mut site = site();
    for name in ["prefill-0", "prefill-1"] {
        engine(&site, name).trouble.as_ref().expect("a wired pod").limit(LINK_BYTES);
    }
    let megabits = LINK_BYTES * 8 / 1_000_000;
    let speeds = format!("--link-speed veth2={megabits} --link-speed veth3={megabits}");
    let gateways = gateways(&mut site, &speeds);
    let course = course(
        &gateways,
        |one| one.prefill == "prefill-0",
        || {
            let stop = Arc::new(AtomicBool::new(false));
            let threads = fill(&site, "prefill-0", Arc::clone(&stop));
            Box::new(move || {
                stop.store(true, Ordering::Relaxed);
                threads.into_iter().for_each(|thread| thread.join().expect("a transfer"));
            })
        },
    );
    moved_and_back(&course, BACK_WITHIN);
}

#[test]
fn an_engine_that_slows_down_loses_traffic() {
    let mut site = site();
    let gateways = gateways(&mut site, "");
    let at = SocketAddr::new(address(&site, "decode-0"), ENGINE_PORT);
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
    let course = course(
        &gateways,
        |one| one.decode == "decode-0",
        || {
            script("/sim/script", r#"{"match":{},"action":{"slow":6.0},"times":0}"#);
            Box::new(move || end("/sim/reset", "{}"))
        },
    );
    moved_and_back(&course, TRIED_AGAIN_WITHIN);
}

#[test]
fn delay_and_loss_between_one_pair_move_the_traffic_to_other_pairs() {
    let mut site = site();
    let gateways = gateways(&mut site, "");
    let trouble = engine(&site, "prefill-0").trouble.clone().expect("a wired pod");
    let IpAddr::V4(peer) = address(&site, "decode-0") else { panic!("IPv4") };
    let pair = |one: &Asked| one.prefill == "prefill-0" && one.decode == "decode-0";
    let course = course(&gateways, pair, || {
        trouble.between(peer, Duration::from_millis(60), 20);
        Box::new(move || trouble.end())
    });
    moved_and_back(&course, TRIED_AGAIN_WITHIN);
}
