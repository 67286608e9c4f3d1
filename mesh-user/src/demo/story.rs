//! The demo's story: real commands, each step asserted. `--script` prints it as a transcript and
//! ends at the first lie.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};

use super::{
    ask::Answers,
    scene::{PORT, Scene, Stage, VIP4, VIP6},
};
use crate::testbed::wait_until;

/// How long a change of the file may take until the next request follows it.
const PROPAGATION: Duration = Duration::from_secs(2);

/// Plays the story. Returns after everything was removed and the proof of it was printed.
///
/// # Errors
/// The first step that is not true.
pub(super) fn play(name: &str) -> anyhow::Result<()> {
    let mut own = BTreeSet::new();
    let result = super::build(name).and_then(|mut scene| {
        let played = steps(&mut scene);
        own = scene.own_objects();
        played?;
        scene.tear_down()
    });
    // The proof comes also after a failed step: a broken demo must not leave anything either.
    step("everything is gone");
    let left = super::inventory::settled(name, &own)?;
    println!("   {left}");
    result?;
    ensure!(left.is_empty(), "the demo left something behind: {left}");
    println!("\nall steps hold");
    Ok(())
}

fn steps(scene: &mut Scene) -> anyhow::Result<()> {
    let rules_before = netfilter(scene)?;
    without_the_mesh(scene)?;
    the_mesh_starts(scene)?;
    split_is_exact(scene)?;
    beta_goes_to_v2(scene)?;
    what_the_client_sees(scene)?;
    what_the_kernel_does(scene)?;
    explain(scene)?;
    live_change(scene)?;
    broken_file(scene)?;
    sick_endpoint(scene)?;
    rate_limit(scene)?;
    agent_dies(scene)?;
    step("no netfilter rule was made, anywhere");
    let rules = netfilter(scene)?;
    ensure!(rules == rules_before, "netfilter rules changed:\n{rules}");
    println!(
        "   iptables and nftables rules: unchanged ({} lines)",
        rules.lines().count()
    );
    Ok(())
}

fn step(title: &str) {
    println!("\n── {title}");
}

fn without_the_mesh(scene: &Scene) -> anyhow::Result<()> {
    step("without the mesh, the virtual address leads nowhere");
    let answers = scene.ask(&scene.client, &["--timeout-ms", "300"])?;
    println!("   client → http://{VIP4}/   {}", describe(&answers));
    ensure!(
        answers.failed() == 1,
        "the virtual address answers without a mesh"
    );
    Ok(())
}

fn the_mesh_starts(scene: &mut Scene) -> anyhow::Result<()> {
    step("the mesh starts; the pods stay as they are");
    println!("   $ mesh run --config {} &", scene.config_path().display());
    scene.start_agent()?;
    show(scene, &["status"])
}

fn split_is_exact(scene: &Scene) -> anyhow::Result<()> {
    step("90 % to v1, 10 % to v2");
    for address in [IpAddr::V4(VIP4), IpAddr::V6(VIP6)] {
        let answers = scene.ask_at(&scene.client, address, &["--count", "1000"])?;
        println!("   client → web ({address})   {}", describe(&answers));
        ensure!(
            answers.status(200) == 1000,
            "not every request was answered: {answers:?}"
        );
        // One keep-alive connection stays on one core: there the split is exact.
        ensure!(
            answers.version("v2") == 100,
            "v2 got {} of 1000",
            answers.version("v2")
        );
    }
    Ok(())
}

fn beta_goes_to_v2(scene: &Scene) -> anyhow::Result<()> {
    step("x-user: beta goes to v2, and so does everything from the workload tester");
    let beta = scene.ask(&scene.client, &["--count", "200", "-H", "x-user: beta"])?;
    println!("   client, x-user: beta → web   {}", describe(&beta));
    ensure!(
        beta.version("v2") == 200,
        "beta users were misrouted: {beta:?}"
    );
    let tester = scene.ask(&scene.tester, &["--count", "200"])?;
    println!("   tester → web                 {}", describe(&tester));
    ensure!(
        tester.version("v2") == 200,
        "the tester was misrouted: {tester:?}"
    );
    Ok(())
}

fn what_the_client_sees(scene: &Scene) -> anyhow::Result<()> {
    step("the client sees what it dialled, not the proxy");
    let answers = scene.ask(&scene.client, &[])?;
    println!(
        "   getpeername() = {:?}   getsockname() = {:?}",
        answers.peer, answers.local
    );
    ensure!(
        answers.peer == Some((VIP4, PORT).into()),
        "peer is {:?}",
        answers.peer
    );
    let local = answers.local.map(|local| local.ip());
    ensure!(
        local == Some(IpAddr::V4(scene.client.v4)),
        "own address is {local:?}"
    );
    Ok(())
}

fn what_the_kernel_does(scene: &Scene) -> anyhow::Result<()> {
    step("what the kernel does, read from its maps");
    for arguments in [
        &["bpf", "services", "list"][..],
        &["bpf", "redirect", "list"],
        &["bpf", "progs"],
        &["config", "services"],
    ] {
        show(scene, arguments)?;
    }
    Ok(())
}

fn explain(scene: &Scene) -> anyhow::Result<()> {
    step("why does a request go where it goes?");
    let to = format!("web:{PORT}");
    show(
        scene,
        &[
            "explain",
            "--from",
            "default/client",
            "--to",
            &to,
            "-H",
            "x-user: beta",
        ],
    )
}

fn live_change(scene: &Scene) -> anyhow::Result<()> {
    step("50/50 from the next request on; no connection is touched");
    apply(
        scene,
        "split-50.yaml",
        &Stage {
            weights: (50, 50),
            ..Stage::default()
        },
    )?;
    follows(scene, "v2 gets half", |answers| answers.version("v2") == 50)?;
    apply(scene, "split-90.yaml", &Stage::default())?;
    follows(scene, "v2 gets a tenth", |answers| {
        answers.version("v2") == 10
    })
}

fn broken_file(scene: &Scene) -> anyhow::Result<()> {
    step("a broken file changes nothing and says what is wrong");
    let good = scene.config_text(&Stage::default());
    let broken = good.replace("weight: 90", "wieght: ninety");
    let path = scene.dir().join("broken.yaml");
    std::fs::write(&path, &broken)?;
    let file = path.display().to_string();
    println!("   $ mesh apply -f {file}");
    let output = scene.mesh(&["apply", "-f", &file])?;
    print_indented(&String::from_utf8_lossy(&output.stderr));
    ensure!(!output.status.success(), "a broken file was taken");
    // Past `apply`, as an editor would.
    std::fs::write(scene.config_path(), &broken)?;
    let told = wait_until(PROPAGATION, || status_says(scene, "wieght"));
    ensure!(told, "mesh status does not show the error of the file");
    let answers = scene.ask(&scene.client, &["--count", "100"])?;
    println!("   client → web   {}", describe(&answers));
    ensure!(
        answers.version("v2") == 10,
        "the last good rules are not in force: {answers:?}"
    );
    scene.write(&Stage::default())?;
    let healed = wait_until(PROPAGATION, || !status_says(scene, "wieght"));
    ensure!(healed, "mesh status still shows the old error");
    Ok(())
}

fn status_says(scene: &Scene, word: &str) -> bool {
    scene
        .mesh(&["status", "-o", "json"])
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(word))
}

fn sick_endpoint(scene: &Scene) -> anyhow::Result<()> {
    step("a sick endpoint is ejected, and returns");
    scene.set_sick("web-v1-b", true)?;
    let first = scene.ask(&scene.client, &["--count", "200"])?;
    println!("   web-v1-b answers 503:  {}", describe(&first));
    let seen = first.status(503);
    ensure!(
        (1..=15).contains(&seen),
        "{seen} of 200 requests met the sick endpoint"
    );
    let second = scene.ask(&scene.client, &["--count", "200"])?;
    println!("   after its ejection:    {}", describe(&second));
    ensure!(
        second.status(200) == 200,
        "requests still meet the ejected endpoint: {second:?}"
    );
    show(scene, &["config", "endpoints"])?;
    scene.set_sick("web-v1-b", false)?;
    let back = wait_until(Duration::from_secs(15), || {
        scene
            .ask(&scene.client, &["--count", "50"])
            .is_ok_and(|answers| answers.servers.contains_key("web-v1-b"))
    });
    ensure!(back, "the healed endpoint did not return");
    println!("   healed: web-v1-b serves again");
    Ok(())
}

fn rate_limit(scene: &Scene) -> anyhow::Result<()> {
    step("over the limit: 429, before anything is forwarded");
    apply(
        scene,
        "limit.yaml",
        &Stage {
            limit: Some((5, 20)),
            ..Stage::default()
        },
    )?;
    let limited = wait_until(PROPAGATION, || {
        scene
            .ask(&scene.client, &["--count", "40"])
            .is_ok_and(|a| a.status(429) > 0)
    });
    ensure!(limited, "no request was limited");
    let answers = scene.ask(&scene.client, &["--count", "40"])?;
    println!("   client → web   {}", describe(&answers));
    for field in [
        "retry-after",
        "ratelimit",
        "ratelimit-policy",
        "x-mesh-reject",
    ] {
        let value = answers
            .headers
            .get(field)
            .with_context(|| format!("429 without {field}"))?;
        println!("   {field}: {value}");
    }
    let other = scene.ask(&scene.tester, &["--count", "10"])?;
    println!(
        "   tester → web   {}   (a bucket of its own)",
        describe(&other)
    );
    ensure!(
        other.status(200) == 10,
        "the limit of one workload hit the other: {other:?}"
    );
    apply(scene, "split-90.yaml", &Stage::default())?;
    follows(scene, "no limit", |answers| answers.status(200) == 100)
}

fn agent_dies(scene: &mut Scene) -> anyhow::Result<()> {
    step("kill -9 the agent: the next connect goes to an endpoint without it");
    scene.kill_agent()?;
    let orphaned = scene.ask(&scene.client, &["--count", "100", "--close"])?;
    println!("   client → web   {}", describe(&orphaned));
    ensure!(
        orphaned.status(200) == 100,
        "connections failed without the agent: {orphaned:?}"
    );
    ensure!(
        orphaned.peer == Some((VIP4, PORT).into()),
        "peer is {:?}",
        orphaned.peer
    );
    show(scene, &["bpf", "stats", "list"])?;
    step("it comes back, adopts what stands in the kernel, and captures again");
    scene.start_agent()?;
    let beta = scene.ask(&scene.client, &["--count", "100", "-H", "x-user: beta"])?;
    println!("   client, x-user: beta → web   {}", describe(&beta));
    ensure!(
        beta.version("v2") == 100,
        "not captured after the restart: {beta:?}"
    );
    Ok(())
}

fn apply(scene: &Scene, name: &str, stage: &Stage) -> anyhow::Result<()> {
    let file = scene.draft(name, stage)?.display().to_string();
    show(scene, &["apply", "-f", &file])
}

/// Waits until 100 requests look as they should, which shows the change's effect.
fn follows(scene: &Scene, what: &str, good: impl Fn(&Answers) -> bool) -> anyhow::Result<()> {
    let mut last = Answers::default();
    let done = wait_until(PROPAGATION, || {
        last = scene
            .ask(&scene.client, &["--count", "100"])
            .unwrap_or_default();
        good(&last)
    });
    println!("   client → web   {}", describe(&last));
    ensure!(
        done,
        "expected «{what}» within {PROPAGATION:?}, got {last:?}"
    );
    Ok(())
}

/// Runs a verb and prints it with its output, as the user would see it.
fn show(scene: &Scene, arguments: &[&str]) -> anyhow::Result<()> {
    println!("   $ mesh {}", arguments.join(" "));
    let output = scene.mesh(arguments)?;
    print_indented(&String::from_utf8_lossy(&output.stdout));
    ensure!(
        output.status.success(),
        "mesh {} ended with {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn print_indented(text: &str) {
    for line in text.lines() {
        println!("   {line}");
    }
}

fn describe(answers: &Answers) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(
        answers
            .versions
            .iter()
            .map(|(name, count)| format!("{name}: {count}")),
    );
    parts.extend(
        answers
            .statuses
            .iter()
            .map(|(status, count)| format!("{count} × {status}")),
    );
    parts.extend(
        answers
            .errors
            .iter()
            .map(|(error, count)| format!("{count} × {error}")),
    );
    if answers.failed() == 0 {
        parts.push(format!("p50 {:.2} ms", answers.p50_ms));
    }
    parts.join("   ")
}

/// The netfilter rules of the node's and the client's namespace, by the tools that are there.
fn netfilter(scene: &Scene) -> anyhow::Result<String> {
    let mut seen = BTreeSet::new();
    for tool in [
        &["iptables-save"][..],
        &["ip6tables-save"],
        &["nft", "list", "ruleset"],
    ] {
        for node in [true, false] {
            let mut command = std::process::Command::new(tool[0]);
            command.args(&tool[1..]);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null());
            let child = if node {
                scene.bed.spawn_node(command)
            } else {
                scene.bed.spawn_in(&scene.client, command)
            };
            // A tool that isn't installed has no rules to show.
            let Ok(child) = child else { continue };
            let output = child.wait_with_output()?;
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                // Comments carry the time, chain lines carry counters.
                if !line.starts_with('#') && !line.starts_with(':') {
                    seen.insert(format!("{} {node}: {line}", tool[0]));
                }
            }
        }
    }
    Ok(seen.into_iter().collect::<Vec<_>>().join("\n"))
}
