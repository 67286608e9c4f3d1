//! `docs/REJECTS.md` says what the code does.

use std::{fs, path::Path};

#[test]
fn rejects_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/REJECTS.md");
    let wanted = mesh_user::policy::reject::reference_markdown();
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::write(&path, &wanted).expect("docs can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is stale: MESH_BLESS=1 cargo test rewrites it",
        path.display()
    );
}
