//! What was probably meant.

/// The known name that is nearest to `name`, when it is near enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names from the file may be of any length; no known name is longer than 253.
    if name.len() > 300 {
        return None;
    }
    let plain = squash(name);
    // Any two names of one letter are one slip apart.
    let allowed = match plain.chars().count() {
        0 | 1 => 0,
        length => (length / 3).clamp(1, 3),
    };
    known
        .into_iter()
        .map(|candidate| (distance(&plain, &squash(candidate)), candidate))
        .filter(|(distance, candidate)| {
            *distance <= allowed || (plain.len() > 3 && squash(candidate).starts_with(&plain))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// `maxConnections` and `max_connections` are `max-connections`.
fn squash(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Edit distance in which two swapped neighbours count as one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            let mut best = (last[j] + 1)
                .min(row[j - 1] + 1)
                .min(last[j - 1] + usize::from(!same));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_and_nothing_else() {
        let known = ["weight", "version", "tags", "max-connections"];
        assert_eq!(nearest("wieght", known), Some("weight"));
        assert_eq!(nearest("tag", known), Some("tags"));
        assert_eq!(nearest("maxConnections", known), Some("max-connections"));
        assert_eq!(nearest("vers", known), Some("version"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("b", ["a", "c"]), None);
        // The same at every run, whatever the order of the names.
        assert_eq!(nearest("v3", ["v2", "v1"]), Some("v1"));
    }
}
