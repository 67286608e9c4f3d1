use std::{
    fs,
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use super::*;

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-ops-log-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn settings(&self, file: &str) -> Settings {
        Settings {
            format: LogFormat::Envoy,
            filter: LogFilter::All,
            path: Some(self.0.join(file)),
        }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn line(text: &str) -> impl Fn(&mut Vec<u8>) {
    move |out| {
        out.extend_from_slice(text.as_bytes());
        out.push(b'\n');
    }
}

#[test]
fn lines_of_many_threads_arrive_whole_and_once() {
    let folder = Folder::new("threads");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                let lane = log.lane();
                (0..5_000).for_each(|n| lane.append(line(&format!("{thread}:{n}"))));
            });
        }
    });
    assert!(log.flush(), "the writer answers");
    assert_eq!(log.lost(), 0);
    let text = folder.read("log");
    for thread in 0..4 {
        let prefix = format!("{thread}:");
        let numbers: Vec<u32> = text
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .map(|number| number.parse().expect("a whole line"))
            .collect();
        assert_eq!(
            numbers,
            (0..5_000).collect::<Vec<_>>(),
            "in order, none missing, none twice"
        );
    }
    assert_eq!(text.lines().count(), 20_000);
}

#[test]
fn line_is_written_without_a_flush() {
    let folder = Folder::new("alone");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    let lane = log.lane();
    lane.append(line("alone"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while folder.read("log") != "alone\n" {
        assert!(Instant::now() < deadline, "a lone line never arrived");
        thread::yield_now();
    }
}

#[test]
fn full_lane_drops_and_counts_instead_of_waiting() {
    // No writer: nobody empties the lane.
    let shared = Arc::new(Shared::default());
    let lane = Lane {
        halves: [Mutex::default(), Mutex::default()],
        current: AtomicUsize::new(0),
        shared: shared.clone(),
    };
    let kibibyte = "x".repeat(1_023);
    for n in 0..LANE_BYTES_MAX / 1_024 {
        lane.append(line(&kibibyte));
        assert_eq!(shared.lost.load(Relaxed), 0, "line {n} has room");
    }
    lane.append(line("one more"));
    assert_eq!(shared.lost.load(Relaxed), 1);
}

#[test]
fn lane_whose_buffer_is_being_taken_uses_the_other() {
    let shared = Arc::new(Shared::default());
    let lane = Lane {
        halves: [Mutex::default(), Mutex::default()],
        current: AtomicUsize::new(0),
        shared: shared.clone(),
    };
    let taken = lane.halves[0].lock().expect("not poisoned");
    lane.append(line("b"));
    drop(taken);
    assert_eq!(*lane.halves[1].lock().expect("not poisoned"), b"b\n");
    assert_eq!(shared.lost.load(Relaxed), 0);
}

#[test]
fn file_is_opened_again_after_it_was_moved() {
    let folder = Folder::new("moved");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    let lane = log.lane();
    lane.append(line("before"));
    assert!(log.flush());
    fs::rename(folder.0.join("log"), folder.0.join("log.1")).expect("rename");
    log.reopen();
    assert!(log.flush());
    lane.append(line("after"));
    assert!(log.flush());
    assert_eq!(folder.read("log.1"), "before\n");
    assert_eq!(folder.read("log"), "after\n");
}

#[test]
fn moved_file_is_noticed_without_a_signal() {
    let folder = Folder::new("noticed");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    let lane = log.lane();
    fs::rename(folder.0.join("log"), folder.0.join("log.1")).expect("rename");
    let deadline = Instant::now() + Duration::from_secs(20);
    while folder.read("log").is_empty() {
        assert!(Instant::now() < deadline, "the moved file is never noticed");
        lane.append(line("tick"));
        assert!(log.flush());
    }
}

#[test]
fn new_settings_take_new_lines_and_leave_old_ones() {
    let folder = Folder::new("settings");
    let log = AccessLog::start(&folder.settings("one")).expect("a log");
    let lane = log.lane();
    lane.append(line("old"));
    let settings = Settings {
        filter: LogFilter::Errors,
        ..folder.settings("two")
    };
    log.reconfigure(&settings).expect("another file");
    assert!(log.flush());
    lane.append(line("new"));
    assert!(log.flush());
    assert_eq!(
        (folder.read("one"), folder.read("two")),
        ("old\n".into(), "new\n".into())
    );
    assert!(log.wants(true) && !log.wants(false));
}

#[test]
fn file_that_can_not_be_opened_is_named() {
    let folder = Folder::new("named");
    let error = AccessLog::start(&folder.settings("no/such/folder/log")).expect_err("no folder");
    assert!(error.to_string().contains("no/such/folder/log"), "{error}");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    log.reconfigure(&folder.settings("no/such/log"))
        .expect_err("no folder");
    let lane = log.lane();
    lane.append(line("still"));
    assert!(log.flush());
    assert_eq!(
        folder.read("log"),
        "still\n",
        "the old settings stay in force"
    );
}

#[test]
fn lines_that_can_not_be_written_are_counted() {
    let settings = Settings {
        format: LogFormat::Envoy,
        filter: LogFilter::All,
        path: Some("/dev/full".into()),
    };
    let log = AccessLog::start(&settings).expect("/dev/full can be opened");
    let lane = log.lane();
    (0..3).for_each(|_| lane.append(line("x")));
    assert!(log.flush());
    assert_eq!(log.lost(), 3);
}

#[test]
fn stop_writes_what_waits_and_frees_everything() {
    let folder = Folder::new("stop");
    let log = AccessLog::start(&folder.settings("log")).expect("a log");
    let lane = log.lane();
    lane.append(line("last"));
    let shared = Arc::downgrade(&log.shared);
    drop(log);
    assert_eq!(folder.read("log"), "last\n");
    drop(lane);
    assert_eq!(shared.strong_count(), 0, "lanes and writer hold each other");
}
