//! `kill -9` at any moment, and restarts.

use std::time::{Duration, Instant};

use mesh_user::testbed::wait_until;

use crate::{
    Random, at_pods_cgroup, hooks, one_open_one_closed,
    scene::{self, Scene, eventually, kernel_count, live},
};

/// What the agent is doing when it is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// On its way from exec to «ready».
    Start,
    /// While a pod that came a moment ago is enrolled.
    Enrol,
    /// While it drains.
    Stop,
    /// While a successor takes over: the running one.
    TakeoverOld,
    /// While a successor takes over: both.
    TakeoverBoth,
}

const MOMENTS: [Moment; 5] = [
    Moment::Start,
    Moment::Enrol,
    Moment::Stop,
    Moment::TakeoverOld,
    Moment::TakeoverBoth,
];

/// With no agent alive: an open pod is served at once, a closed one refused at once.
fn assert_failure_modes(scene: &Scene, when: &str) {
    let open = scene.ask(&scene.client, &[]).unwrap();
    assert_eq!(open.status(200), 1, "{when}: {open:?}");
    assert!(open.slowest_ms < 1_000.0, "{when}: {open:?}");
    let closed = scene.ask(&scene.tester, &[]).unwrap();
    assert_eq!(
        closed.errors.get("ECONNREFUSED"),
        Some(&1),
        "{when}: {closed:?}"
    );
    assert!(closed.slowest_ms < 1_000.0, "{when}: {closed:?}");
}

fn assert_captured(scene: &Scene, when: &str) {
    for pod in [&scene.client, &scene.tester] {
        let before = kernel_count(scene, "captured");
        let answers = scene.ask(pod, &[]).unwrap();
        assert_eq!(answers.status(200), 1, "{when}: {}: {answers:?}", pod.name);
        assert!(kernel_count(scene, "captured") > before, "{when}");
    }
}

/// Runs the agent into the moment and kills it after a random time. What else runs then.
fn kill_in(scene: &mut Scene, moment: Moment, random: &mut Random, third: &str) {
    let wait = |random: &mut Random, below| {
        // The moment is the subject.
        std::thread::sleep(Duration::from_millis(random.below(below)));
    };
    match moment {
        Moment::Start => {
            scene.kill_agent().unwrap();
            scene.spawn_agent().unwrap();
            wait(random, 700);
            scene.kill_agent().unwrap();
        }
        Moment::Enrol => {
            let pod = scene.bed.pod("third").unwrap();
            std::fs::write(scene.config_path(), third).unwrap();
            wait(random, 400);
            scene.kill_agent().unwrap();
            let text = one_open_one_closed(scene);
            std::fs::write(scene.config_path(), text).unwrap();
            scene.bed.remove(&pod).unwrap();
        }
        Moment::Stop => {
            let pid = scene.status().unwrap().pid;
            let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            wait(random, 300);
            scene.kill_agent().unwrap();
        }
        Moment::TakeoverOld | Moment::TakeoverBoth => {
            let successor = scene.spawn_successor(&scene.config_path()).unwrap();
            wait(random, 700);
            scene.kill_agent().unwrap();
            scene.replace_agent(successor);
            if matches!(moment, Moment::TakeoverBoth) {
                scene.kill_agent().unwrap();
            } else {
                live(scene, 2);
            }
        }
    }
}

/// Twenty random moments of five kinds. After each the failure modes hold at once, a restart adopts
/// everything, and one program stands at each hook.
#[test]
fn agent_killed_at_any_moment_leaves_the_failure_modes_and_is_adopted() {
    let mut scene = scene::build("l-any");
    let text = one_open_one_closed(&scene);
    let path = scene
        .client
        .netns
        .to_string_lossy()
        .replace("-client", "-third");
    let third = format!("{text}  - {{name: third, netns: {path}}}\n");
    scene.start_with(&text).unwrap();
    let (before, standing) = (hooks(&scene), at_pods_cgroup(&scene));
    assert!(standing.values().all(|count| *count == 1), "{standing:?}");
    let mut random = Random::new();
    for round in 0..20 {
        let moment = MOMENTS[round % MOMENTS.len()];
        let when = format!("round {round}, {moment:?}");
        kill_in(&mut scene, moment, &mut random, &third);
        if !matches!(moment, Moment::TakeoverOld) {
            assert_failure_modes(&scene, &when);
            scene
                .start_agent()
                .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        let same = wait_until(Duration::from_secs(5), || hooks(&scene) == before);
        assert!(same, "{when}: {:?}, expected {before:?}", hooks(&scene));
        assert_eq!(at_pods_cgroup(&scene), standing, "{when}");
        assert_captured(&scene, &when);
    }
    scene.tear_down().unwrap();
}

/// Pitfall 14: old and new generation both attached. Bounded in time, sixty rounds at the most.
#[test]
fn sixty_kills_and_restarts_leave_one_program_at_each_hook() {
    let mut scene = scene::build("l-sixty");
    let text = one_open_one_closed(&scene);
    scene.start_with(&text).unwrap();
    let (before, standing) = (hooks(&scene), at_pods_cgroup(&scene));
    let objects = scene.own_objects().len();
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds < 60 && begun.elapsed() < Duration::from_secs(45) {
        scene.kill_agent().unwrap();
        scene.start_agent().unwrap();
        rounds += 1;
    }
    println!("{rounds} rounds in {:?}", begun.elapsed());
    assert!(rounds >= 10, "{rounds} rounds");
    assert_eq!(hooks(&scene), before);
    assert_eq!(at_pods_cgroup(&scene), standing);
    assert_captured(&scene, "afterwards");
    // What the programs and maps of all those agents were: freed, but for one generation.
    let own = scene.own_objects();
    assert!(own.len() > objects, "each start loaded its own");
    eventually("the older generations are freed", || {
        let now = mesh_user::kernel::inventory::loaded_objects().unwrap();
        let left = now.programs.iter().chain(&now.maps);
        left.filter(|object| own.contains(*object)).count() == objects
    });
    scene.tear_down().unwrap();
}
