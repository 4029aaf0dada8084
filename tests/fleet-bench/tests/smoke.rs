//! The fleet benchmark as a process, short: every figure of its tables, an agent beside it, and one run
//! of load alone. Its programs come from `cargo xtask test bench`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sglang_sim::{Config, Engine, Role};

const SHORT: &str = "--seconds 2 --warm-up 0.5 --prompt-scale 0.02";

/// A folder that ends with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("fleet-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A command that finds its programs by variables which only `cargo xtask test bench` sets.
fn bench(words: &str) -> Command {
    for name in ["PD_ROUTER_BIN", "SGLANG_SIM_BIN"] {
        assert!(std::env::var_os(name).is_some(), "{name}: run `cargo xtask test bench`");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleet-bench"));
    command.args(words.split_whitespace());
    command
}

/// What a command printed; it must succeed.
fn printed(mut command: Command) -> String {
    let output = command.output().expect("starting fleet-bench");
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out
}

fn runs(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("the file of runs");
    text.lines().map(|line| serde_json::from_str(line).expect("a run")).collect()
}

fn trace(folder: &Path) -> String {
    let line = |at: usize| {
        let last = 100 + at;
        format!(
            r#"{{"timestamp":{},"input_length":900,"output_length":64,"hash_ids":[{},{last}]}}"#,
            at * 50,
            at % 7
        )
    };
    let file = folder.join("trace.jsonl");
    let lines: Vec<String> = (0..700).map(line).collect();
    std::fs::write(&file, lines.join("\n")).expect("a trace");
    file.display().to_string()
}

/// The cells of a table's rows that begin with a name.
fn rows<'t>(tables: &'t str, name: &str) -> Vec<Vec<&'t str>> {
    let rows = tables.lines().filter(|line| line.starts_with(&format!("| {name} |")));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

#[test]
fn all_requests_are_answered_and_the_tables_are_complete() {
    let folder = Folder::new("tables");
    let out = folder.path().join("fleet.jsonl");
    let (file, logs) = (out.display().to_string(), folder.path().join("logs"));
    let trace = trace(folder.path());
    let words = format!(
        "run --router predicted --router round_robin --gateways 2 --prefills 2 --decodes 2 \
         --cell docs:15 --cell trace:15 --trace {trace} --rounds 2 --engine-warm-up 0.5 {SHORT} \
         --out {file} --logs {}",
        logs.display()
    );
    let first = printed(bench(&words));
    let runs = runs(&out);
    let routers: Vec<&str> = runs.iter().map(|run| run["router"].as_str().unwrap()).collect();
    // Two cells in each of two rounds; the order rotates.
    let (one, other) = (["predicted", "round_robin"], ["round_robin", "predicted"]);
    assert_eq!(routers, [one, one, other, other].concat());
    let mut asked: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for run in &runs {
        let requests = run["requests"].as_array().unwrap();
        assert!(requests.len() > 10, "{} requests", requests.len());
        for request in requests {
            assert!(request["error"].is_null() && request["ttft_ms"].is_f64(), "{request}");
            assert!(request["itl_ms"].is_f64(), "{request}");
        }
        assert!(run["gateway_cpu_ms"].as_f64().unwrap() > 0.0, "{}", run["gateway_cpu_ms"]);
        let same = requests.iter().map(|r| serde_json::json!([r["at_s"], r["prompt_tokens"]]));
        asked.entry(format!("{} {}", run["round"], run["cell"])).or_default().push(same.collect());
    }
    // Both routers have the same requests at the same times, and rounds differ.
    assert_eq!(asked.len(), 4);
    assert!(asked.values().all(|both| both.len() == 2 && both[0] == both[1]), "{asked:?}");
    let mut lists: Vec<String> = asked.values().map(|both| both[0].to_string()).collect();
    lists.dedup();
    assert_eq!(lists.len(), 4);

    for router in one {
        let figures: Vec<Vec<&str>> =
            rows(&first, router).into_iter().filter(|row| row.len() == 12).collect();
        assert_eq!(figures.len(), 2, "a row of figures for each cell: {first}");
        for row in figures {
            assert!(!row.contains(&"-"), "{router}: {row:?}");
            assert_eq!(row[9], "0", "errors: {row:?}");
        }
    }
    let ratios: Vec<Vec<&str>> =
        rows(&first, "round_robin").into_iter().filter(|row| row.len() == 6).collect();
    assert_eq!(ratios.len(), 2, "a row of ratios for each cell: {first}");
    for row in ratios {
        assert!(row[1..5].iter().all(|ratio| ratio.contains(" [")), "no interval: {row:?}");
        assert_eq!(row[5].split(' ').count(), 2, "a ratio for each round: {row:?}");
    }

    // What is there is not taken again, and the file alone gives the same tables.
    let again = printed(bench(&words));
    assert_eq!(self::runs(&out).len(), 8);
    let tables = printed(bench(&format!("table {file}")));
    assert!(first.ends_with(&tables) && again.ends_with(&tables), "{tables}");
}

#[test]
fn the_agent_counts_the_kv_that_engines_send() {
    let folder = Folder::new("agent");
    let (out, logs) = (folder.path().join("fleet.jsonl"), folder.path().join("logs"));
    let mut command = bench(
        "run --router predicted+agent --router predicted --gateways 2 --cell docs:15 --rounds 1 \
         --seconds 3 --warm-up 1 --engine-warm-up 0.5 --prompt-scale 0.05 --agent-first",
    );
    command.arg("--out").arg(&out).arg("--logs").arg(&logs);
    printed(command);
    let runs = runs(&out);
    assert_eq!(runs.len(), 2);
    for run in &runs {
        for request in run["requests"].as_array().unwrap() {
            assert!(request["error"].is_null() && request["decode"].is_string(), "{request}");
        }
    }
    let report = std::fs::read_to_string(logs.join("agent.json")).expect("the agent's report");
    let report: Value = serde_json::from_str(&report).unwrap();
    let bytes = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report:#}"));
    // The agent sees what frames the KV as well.
    let ratio = bytes("pods_kv_bytes") / bytes("engines_kv_bytes");
    assert!((1.0..1.05).contains(&ratio), "{ratio}: {report:#}");
    assert!(bytes("pairs_kv_bytes") > 0.9 * bytes("pods_kv_bytes"), "{report:#}");
    assert!(bytes("cpu_s") > 0.0 && bytes("peak_mib") > 0.0, "{report:#}");
}

#[test]
fn an_engine_that_ends_is_an_error_with_its_log() {
    let folder = Folder::new("log");
    let words = format!(
        "run --router round_robin --prefills 1 --decodes 1 --out {0}/x.jsonl --logs {0}/logs \
         --engine-command",
        folder.path().display()
    );
    let mut command = bench(&words);
    let output = command.arg("echo {name} of {role} has no GPU {gpu}; exit 7").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("exit status: 7") && error.contains("has no GPU 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_alone_works_before_any_endpoint() {
    let folder = Folder::new("load");
    let out = folder.path().join("load.jsonl");
    let engine = Engine::start(Config::new(Role::Unified)).await.expect("an engine");
    let words = format!(
        "load --url http://{} --cell docs:20 --name plain {SHORT} --out {}",
        engine.address(),
        out.display()
    );
    let line = tokio::task::spawn_blocking(move || printed(bench(&words))).await.unwrap();
    let run: Value = serde_json::from_str(&line).expect("a run");
    assert_eq!(vec![run.clone()], runs(&out));
    assert_eq!((&run["router"], &run["gateways"]), (&"plain".into(), &1.into()));
    let requests = run["requests"].as_array().unwrap();
    assert!(requests.len() > 10 && requests.iter().all(|request| request["error"].is_null()));
    engine.stop().await;
}
