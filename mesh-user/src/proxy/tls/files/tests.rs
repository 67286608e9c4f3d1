use super::*;

fn temp(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mesh-tls-files-{}-{name}", std::process::id()))
}

#[test]
fn what_is_no_regular_file_is_unreadable_and_blocks_nobody() {
    let (fifo, folder) = (temp("fifo"), temp("dir"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(&folder).unwrap();
    for path in [
        &fifo,
        &folder,
        &temp("missing"),
        &PathBuf::from("/dev/zero"),
    ] {
        let contents = Contents::read(std::slice::from_ref(path));
        let error = contents.get(path).unwrap_err().to_string();
        assert!(error.starts_with("unreadable: "), "{error}");
    }
    fs::remove_file(fifo).unwrap();
    fs::remove_dir(folder).unwrap();
}

#[test]
fn hash_differs_by_content_and_by_what_can_not_be_read() {
    let path = temp("hash");
    let hash = || Contents::read(std::slice::from_ref(&path)).hash();
    let missing = hash();
    fs::write(&path, "a").unwrap();
    let first = hash();
    fs::write(&path, "b").unwrap();
    let second = hash();
    fs::write(&path, "a").unwrap();
    assert_eq!(hash(), first);
    assert!(missing != first && first != second);
    fs::remove_file(path).unwrap();
}

#[test]
fn stamp_of_a_file_that_has_just_changed_says_nothing() {
    let path = temp("stamp");
    fs::write(&path, "a").unwrap();
    let paths = std::slice::from_ref(&path);
    assert_eq!(stamp(paths, SystemTime::now()), None);
    let later = SystemTime::now() + 2 * SETTLED_AFTER;
    let settled = stamp(paths, later);
    assert!(settled.is_some());
    assert_eq!(stamp(paths, later), settled);
    fs::remove_file(&path).unwrap();
    assert_eq!(stamp(paths, later), None);
}

#[test]
fn faults_never_tell_what_is_in_a_key() {
    let path = temp("key");
    let secret = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA\n";
    fs::write(&path, secret).unwrap();
    let files = CertificateFiles {
        cert: path.clone(),
        key: path.clone(),
    };
    let contents = Contents::read(std::slice::from_ref(&path));
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let error = certified(&files, &contents, &provider).unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("c2VjcmV0"),
        "{error:?}"
    );
    fs::remove_file(path).unwrap();
}
