//! The configuration file as a user meets it.

use std::path::Path;

use mesh_user::config;

fn examples() -> Vec<std::path::PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    assert!(files.len() >= 4);
    files
}

#[test]
fn examples_are_valid_without_a_warning() {
    for file in examples() {
        let examined = config::examine(&file);
        assert!(
            examined.report.is_empty(),
            "{}",
            examined.report.render(false)
        );
    }
}
