//! Runs the tests by group and sums them up in one closing line.

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::{
    build_ebpf,
    metadata::{self, Package},
    run, setup,
};

#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Groups to run; none: all.
    groups: Vec<Group>,
}

/// A group of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Group {
    /// Pure code: libraries, binaries, `tests/unit_*`, documentation; no root, no object.
    Unit,
    /// Programs, maps, namespaces.
    Kernel,
    /// The proxy over loopback.
    Proxy,
    /// The whole path.
    Traffic,
    /// Platform adapters.
    Platforms,
    /// Packaging and upgrade.
    Deploy,
    /// Bad input, limits, failures.
    Edges,
}

impl Group {
    const ALL: &[Self] = &[
        Self::Unit,
        Self::Kernel,
        Self::Proxy,
        Self::Traffic,
        Self::Platforms,
        Self::Deploy,
        Self::Edges,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::Proxy => "proxy",
            Self::Traffic => "traffic",
            Self::Platforms => "platforms",
            Self::Deploy => "deploy",
            Self::Edges => "edges",
        }
    }

    /// Whether its tests load the eBPF programs, and so need the object and root.
    fn needs_object(self) -> bool {
        match self {
            Self::Unit | Self::Proxy => false,
            Self::Kernel | Self::Traffic | Self::Platforms | Self::Deploy | Self::Edges => true,
        }
    }

    /// The group of an integration test, from its name.
    fn of(test: &str) -> Option<Self> {
        let first = test.split('_').next()?;
        Self::ALL
            .iter()
            .copied()
            .find(|group| group.name() == first)
    }
}

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// The closing line that CI reads, and the error that goes with it.
    pub(crate) fn close(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 {
            bail!("{} failed", self.failed);
        }
        Ok(())
    }
}

/// Runs the groups and closes with the sum.
pub(crate) fn run(args: &Args) -> Result<()> {
    measure(args)?.close()
}

/// Runs the groups; an error only when nothing could be run at all.
pub(crate) fn measure(args: &Args) -> Result<Totals> {
    let mut groups = args.groups.clone();
    if groups.is_empty() {
        groups = Group::ALL.to_vec();
    }
    groups.sort_unstable();
    groups.dedup();
    let packages = metadata::packages()?;
    if let Some(stray) = stray(&packages) {
        bail!("test {stray} belongs to no group and would never run: name it GROUP_{stray}");
    }
    print_machine();
    if groups.iter().any(|group| group.needs_object()) {
        setup::run()?;
        build_ebpf::run(&build_ebpf::Args::default())?;
    }
    let mut totals = Totals::default();
    let mut empty = Vec::new();
    for group in groups {
        eprintln!("--- {}", group.name());
        let commands = commands(group, &packages);
        if commands.is_empty() {
            empty.push(group.name());
        }
        for args in commands {
            totals.add(cargo_test(&args)?);
        }
    }
    if !empty.is_empty() {
        println!("no test yet in: {}", empty.join(", "));
    }
    if totals.ignored > 0 {
        println!(
            "{} ignored: a test that does not run counts as failed",
            totals.ignored
        );
        totals.failed += totals.ignored;
    }
    if totals.passed + totals.failed == 0 {
        bail!("no test ran");
    }
    Ok(totals)
}

/// An integration test of no group.
fn stray(packages: &[Package]) -> Option<&str> {
    let mut tests = packages.iter().flat_map(|package| &package.tests);
    tests
        .find(|test| Group::of(test).is_none())
        .map(String::as_str)
}

/// All that runs on the host. Every command names the same packages: with others, cargo would
/// choose other features of shared dependencies and build them, and us, once more.
const HOST: [&str; 3] = ["--workspace", "--exclude", "mesh-ebpf"];

/// Arguments of each `cargo test` of a group.
fn commands(group: Group, packages: &[Package]) -> Vec<Vec<String>> {
    let tests = packages.iter().flat_map(|package| &package.tests);
    let mut named = Vec::new();
    for test in tests.filter(|test| Group::of(test) == Some(group)) {
        named.extend(["--test", test.as_str()]);
    }
    let mut commands = Vec::new();
    if group == Group::Unit {
        commands.push([&HOST[..], &["--lib", "--bins"], &named].concat());
        // The programs' binary runs in the kernel only; their decisions are a library.
        commands.push(vec!["--package", "mesh-ebpf", "--lib"]);
        commands.push([&HOST[..], &["--doc"]].concat());
    } else if !named.is_empty() {
        commands.push([&HOST[..], &named].concat());
    }
    commands
        .into_iter()
        .map(|args| args.into_iter().map(str::to_owned).collect())
        .collect()
}

fn cargo_test(args: &[String]) -> Result<Totals> {
    let mut cargo = run::cargo();
    cargo
        .args(["test", "--locked", "--no-fail-fast"])
        .args(args);
    let mut totals = Totals::default();
    let ok = run::run_lines(&mut cargo, |line| {
        println!("{line}");
        if let Some(result) = parse_result(line) {
            totals.add(result);
        }
    })?;
    if !ok && totals.failed == 0 {
        // It did not build, or a test process died before it could say anything.
        println!("cargo test failed without naming a test: counted as one failure");
        totals.failed = 1;
    }
    Ok(totals)
}

/// Numbers of libtest's line `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn parse_result(line: &str) -> Option<Totals> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |word: &str| {
        rest.split("; ")
            .find_map(|part| part.strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some(Totals {
        passed: number(" passed")?,
        failed: number(" failed")?,
        ignored: number(" ignored")?,
    })
}

fn print_machine() {
    let kernel = run::ask("uname", &["-srm"]).unwrap_or_else(|| "unknown".into());
    let features: Vec<String> = crate::needs::all()
        .into_iter()
        .map(|need| {
            format!(
                "{} {}",
                need.what,
                if need.state.is_ok() { "yes" } else { "NO" }
            )
        })
        .collect();
    println!("kernel: {kernel}");
    println!("features: {}", features.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_line_is_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 5 filtered \
                    out; finished in 0.10s";
        assert_eq!(
            parse_result(line),
            Some(Totals {
                passed: 12,
                failed: 3,
                ignored: 1
            })
        );
        for other in [
            "test result",
            "running 3 tests",
            "test a ... ok",
            "12 passed; 3 failed",
        ] {
            assert_eq!(parse_result(other), None, "{other}");
        }
    }

    #[test]
    fn group_of_a_test_is_its_first_word() {
        assert_eq!(Group::of("kernel_connect"), Some(Group::Kernel));
        assert_eq!(Group::of("edges"), Some(Group::Edges));
        assert_eq!(Group::of("kernels_connect"), None);
        assert_eq!(Group::of("connect"), None);
    }

    #[test]
    fn commands_name_only_tests_of_the_group() {
        let tests = ["kernel_a", "proxy_b", "kernel_c"]
            .map(str::to_owned)
            .to_vec();
        let packages = [Package {
            name: "mesh-user".into(),
            dir: "/nowhere".into(),
            tests,
        }];
        let kernel = commands(Group::Kernel, &packages);
        assert_eq!(kernel.len(), 1);
        assert_eq!(kernel[0][3..], ["--test", "kernel_a", "--test", "kernel_c"]);
        assert!(
            commands(Group::Deploy, &packages).is_empty(),
            "no test is not a test run"
        );
        assert_eq!(commands(Group::Unit, &packages).len(), 3);
    }

    #[test]
    fn totals_with_a_failure_are_an_error() {
        assert!(
            Totals {
                passed: 1,
                failed: 0,
                ignored: 0
            }
            .close()
            .is_ok()
        );
        assert!(
            Totals {
                passed: 1,
                failed: 1,
                ignored: 0
            }
            .close()
            .is_err()
        );
    }
}
