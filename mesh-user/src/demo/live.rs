//! The live picture: traffic flowing, keys that run real commands.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader},
    process::Child,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::Paragraph,
};

use super::{
    ask::Answers,
    scene::{Scene, Stage},
};

/// Reports of the load come this often, in milliseconds.
const REPORT_MS: u64 = 500;
/// Pause of the load between two requests, in milliseconds: some hundred requests a second.
const PAUSE_MS: &str = "2";
/// How many commands and their outputs stay visible.
const LOG_LINES: usize = 14;

/// Shows the picture until `q`.
///
/// # Errors
/// No terminal, or something could not be started.
pub(super) fn show(name: &str) -> anyhow::Result<()> {
    println!("making pods, starting servers and the agent ...");
    let mut own = std::collections::BTreeSet::new();
    let result = super::build(name).and_then(|scene| run(scene, &mut own));
    let left = super::inventory::settled(name, &own)?;
    println!("{left}");
    result?;
    ensure!(left.is_empty(), "the demo left something behind: {left}");
    Ok(())
}

fn run(mut scene: Scene, own: &mut std::collections::BTreeSet<String>) -> anyhow::Result<()> {
    scene.start_agent()?;
    let (mut load, reports) = start_load(&scene)?;
    let mut terminal = ratatui::try_init().context("no terminal (try --script)")?;
    let mut picture = Picture::default();
    let result = picture.turn(&mut terminal, &mut scene, &reports);
    ratatui::restore();
    load.kill().ok();
    load.wait().ok();
    *own = scene.own_objects();
    result?;
    scene.tear_down()
}

fn start_load(scene: &Scene) -> anyhow::Result<(Child, Receiver<Answers>)> {
    let mut child = scene.flood(
        &scene.client,
        REPORT_MS,
        &["--pause-ms", PAUSE_MS, "--requests-per-connection", "100"],
    )?;
    let output = child.stdout.take().context("the load has no output")?;
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("demo-load".into())
        .spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(answers) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(answers).is_err() {
                    return;
                }
            }
        })?;
    Ok((child, receiver))
}

#[derive(Debug, Default)]
struct Picture {
    last: Answers,
    total: u64,
    errors: u64,
    generation: u64,
    stats: Vec<(String, u64)>,
    stats_at: Option<Instant>,
    stage: Stage,
    sick: bool,
    paused: bool,
    log: VecDeque<String>,
}

impl Picture {
    fn turn(
        &mut self,
        terminal: &mut ratatui::DefaultTerminal,
        scene: &mut Scene,
        reports: &Receiver<Answers>,
    ) -> anyhow::Result<()> {
        loop {
            while let Ok(answers) = reports.try_recv() {
                self.total += u64::from(answers.asked());
                self.errors += u64::from(answers.failed());
                self.last = answers;
            }
            self.refresh(scene);
            terminal.draw(|frame| self.draw(frame))?;
            if !event::poll(Duration::from_millis(100))? {
                continue;
            }
            let Event::Key(key) = event::read()? else {
                continue;
            };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            let interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if key.code == KeyCode::Char('q') || interrupt {
                return Ok(());
            }
            if let KeyCode::Char(letter) = key.code {
                self.press(letter, scene)?;
            }
        }
    }

    /// Every second the kernel's counters and the generation, by the CLI's own verbs.
    fn refresh(&mut self, scene: &Scene) {
        if self
            .stats_at
            .is_some_and(|at| at.elapsed() < Duration::from_secs(1))
        {
            return;
        }
        self.stats_at = Some(Instant::now());
        if let Some(status) = json(scene, &["status", "-o", "json"]) {
            self.generation = find(&status, "generation").unwrap_or(self.generation);
        }
        let Some(stats) = json(scene, &["bpf", "stats", "list", "-o", "json"]) else {
            return;
        };
        let rows = stats
            .get("items")
            .and_then(|items| items.as_array())
            .cloned();
        self.stats = rows
            .unwrap_or_default()
            .iter()
            .filter_map(|row| {
                let reason = row.get("reason")?.as_str()?.to_owned();
                Some((reason, row.get("count")?.as_u64()?))
            })
            .collect();
    }

    fn press(&mut self, letter: char, scene: &mut Scene) -> anyhow::Result<()> {
        match letter {
            '1' => self.restage(scene, "90-10", |stage| stage.weights = (90, 10)),
            '2' => self.restage(scene, "50-50", |stage| stage.weights = (50, 50)),
            '3' => self.restage(scene, "0-100", |stage| stage.weights = (0, 100)),
            'l' => self.restage(scene, "limit", |stage| {
                stage.limit = if stage.limit.is_some() {
                    None
                } else {
                    Some((100, 100))
                };
            }),
            'k' => {
                self.sick = !self.sick;
                scene.set_sick("web-v1-b", self.sick)?;
                let what = if self.sick {
                    "answers 503 to everything"
                } else {
                    "is healed"
                };
                self.say(format!("web-v1-b {what}"));
                Ok(())
            }
            'r' => {
                self.say(
                    "$ kill -TERM <agent>; mesh run ...   (connections go direct meanwhile)".into(),
                );
                scene.stop_agent()?;
                scene.start_agent()?;
                self.say("the agent is back: adopted programs, maps and links".into());
                Ok(())
            }
            'x' => {
                self.paused = !self.paused;
                let word = if self.paused { "off" } else { "on" };
                self.command(scene, &["redirect", word])
            }
            'e' => self.command(
                scene,
                &[
                    "explain",
                    "--from",
                    "default/client",
                    "--to",
                    "web:80",
                    "-H",
                    "x-user: beta",
                ],
            ),
            'c' => self.command(scene, &["bpf", "conns", "list"]),
            _ => Ok(()),
        }
    }

    fn restage(
        &mut self,
        scene: &Scene,
        name: &str,
        change: impl FnOnce(&mut Stage),
    ) -> anyhow::Result<()> {
        change(&mut self.stage);
        let file = scene
            .draft(&format!("{name}.yaml"), &self.stage)?
            .display()
            .to_string();
        self.command(scene, &["apply", "-f", &file])
    }

    fn command(&mut self, scene: &Scene, arguments: &[&str]) -> anyhow::Result<()> {
        self.say(format!("$ mesh {}", arguments.join(" ")));
        let output = scene.mesh(arguments)?;
        for text in [&output.stdout, &output.stderr] {
            for line in String::from_utf8_lossy(text).lines().take(LOG_LINES - 2) {
                self.say(format!("  {line}"));
            }
        }
        Ok(())
    }

    fn say(&mut self, line: String) {
        self.log.push_back(line);
        while self.log.len() > LOG_LINES {
            self.log.pop_front();
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [head, body, kernel, keys, log] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(4),
            Constraint::Length(2),
            Constraint::Length(3),
            Constraint::Min(4),
        ])
        .areas(frame.area());
        let per_s = f64::from(self.last.asked()) * 1000.0 / REPORT_MS as f64;
        frame.render_widget(
            Paragraph::new(Line::from(vec![
                " mesh demo ".bold().reversed(),
                format!(
                    "  generation {}   {per_s:.0} req/s   p50 {:.2} ms  p99 {:.2} ms   {} requests, {} errors   netfilter rules: 0",
                    self.generation, self.last.p50_ms, self.last.p99_ms, self.total, self.errors
                )
                .into(),
            ])),
            head,
        );
        frame.render_widget(Paragraph::new(self.bars()), body);
        frame.render_widget(Paragraph::new(self.kernel_line()), kernel);
        frame.render_widget(
            Paragraph::new(vec![
                Line::from(" [1] 90/10  [2] 50/50  [3] all to v2  [l] limit 100/s on/off  [k] web-v1-b sick/healed"),
                Line::from(" [r] restart the agent  [x] redirect off/on  [e] explain  [c] connections  [q] quit"),
            ])
            .style(Style::new().fg(Color::DarkGray)),
            keys,
        );
        let lines: Vec<Line<'_>> = self
            .log
            .iter()
            .map(|line| Line::from(line.as_str()))
            .collect();
        frame.render_widget(Paragraph::new(lines), log);
    }

    fn bars(&self) -> Vec<Line<'_>> {
        let answered: u32 = self.last.versions.values().sum();
        let mut lines = Vec::new();
        for (index, version) in ["v1", "v2"].into_iter().enumerate() {
            let count = self.last.version(version);
            let share = f64::from(count) / f64::from(answered.max(1));
            let full = (share * 40.0).round() as usize;
            let branch = if index == 0 {
                " client ──▶ web ─┬─ "
            } else {
                "                 └─ "
            };
            let per_s = f64::from(count) * 1000.0 / REPORT_MS as f64;
            lines.push(Line::from(vec![
                Span::raw(branch),
                Span::raw(format!("{version}  ")).bold(),
                Span::styled("█".repeat(full), Style::new().fg(Color::Green)),
                Span::raw("░".repeat(40 - full.min(40))),
                Span::raw(format!("  {:>3.0} %  {per_s:>4.0}/s", share * 100.0)),
            ]));
        }
        let others: Vec<String> = self
            .last
            .statuses
            .iter()
            .filter(|(status, _)| **status != 200)
            .map(|(status, count)| format!("{count} × {status}"))
            .chain(
                self.last
                    .rejects
                    .iter()
                    .map(|(name, count)| format!("{name}: {count}")),
            )
            .collect();
        lines.push(Line::from(format!(
            "                    {}",
            others.join("   ")
        )));
        lines
    }

    fn kernel_line(&self) -> String {
        let of = |name: &str| {
            self.stats
                .iter()
                .find(|(reason, _)| reason == name)
                .map_or(0, |(_, count)| *count)
        };
        format!(
            " kernel: captured {}   passed {}   direct without agent {}   refused {}",
            of("captured"),
            self.stats
                .iter()
                .filter(|(reason, _)| reason.starts_with("pass_"))
                .map(|(_, count)| count)
                .sum::<u64>(),
            of("direct_agent_gone") + of("bypass_agent_gone"),
            of("refuse_agent_gone"),
        )
    }
}

fn json(scene: &Scene, arguments: &[&str]) -> Option<serde_json::Value> {
    let output = scene.mesh(arguments).ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// The first number of that name, wherever it stands.
fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(map) => map
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .or_else(|| map.values().find_map(|value| find(value, name))),
        serde_json::Value::Array(list) => list.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn picture_shows_shares_errors_and_kernel_counters() {
        let mut picture = Picture::default();
        picture.last.versions = [("v1".into(), 180), ("v2".into(), 20)].into();
        picture.last.statuses = [(200, 200), (429, 7)].into();
        picture.stats = vec![("captured".into(), 42), ("pass_agent".into(), 5)];
        let mut terminal = Terminal::new(TestBackend::new(110, 20)).unwrap();
        terminal.draw(|frame| picture.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        assert!(text.contains("90 %   360/s"), "{text}");
        assert!(text.contains("10 %    40/s"), "{text}");
        assert!(text.contains("7 × 429"), "{text}");
        assert!(text.contains("captured 42   passed 5"), "{text}");
    }
}
