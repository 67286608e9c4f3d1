//! Random models and requests, from sets so small that conditions and requests meet often.

use std::collections::BTreeMap;

use crate::{
    model::{Match, Model, PathMatch, SourceMatch, Tags, Target, ValueMatch},
    policy::{
        fixture::{Ask, get, model, rule, service, tags, to, workload},
        rng::Rng,
    },
};

/// Draws one after the other.
pub(in crate::policy) struct Draw(pub(in crate::policy) Rng);

impl Draw {
    pub(in crate::policy) fn one<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.0.below(from.len() as u32) as usize]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.below(100) < percent
    }

    fn path(&mut self) -> String {
        let mut path = String::new();
        for _ in 0..self.0.below(4) {
            path.push('/');
            path.push_str(self.one(&["a", "b", "ab", "c", "1"]));
        }
        if path.is_empty() || self.chance(20) {
            path.push('/');
        }
        path
    }

    fn value(&mut self) -> ValueMatch {
        match self.0.below(10) {
            0 => ValueMatch::Prefix(self.one(&["", "1", "12", "b"]).to_owned()),
            1 => ValueMatch::Regex(
                self.one(&["1.*", "[ab]+", "1|12", "12|1", "1, ?2"])
                    .to_owned(),
            ),
            2 => ValueMatch::Present(self.chance(70)),
            _ => ValueMatch::Exact(self.one(&["1", "2", "12", "1, 2", "b", ""]).to_owned()),
        }
    }

    pub(in crate::policy) fn alternative(&mut self) -> Match {
        let path = self.chance(60).then(|| match self.0.below(6) {
            0 => PathMatch::Regex(
                self.one(&["/a.*", "/[ab]/?", ".*/1", "/(a|b)/.*"])
                    .to_owned(),
            ),
            1 | 2 => PathMatch::Exact(self.path()),
            _ => PathMatch::Prefix(self.path()),
        });
        let name = |draw: &mut Self| draw.one(&["x", "y", "z"]).to_owned();
        let mut headers: Vec<(String, ValueMatch)> = Vec::new();
        let mut query: Vec<(String, ValueMatch)> = Vec::new();
        for (list, percent) in [(&mut headers, 40), (&mut query, 20)] {
            while self.chance(percent) {
                let name = name(self);
                if list.iter().all(|(other, _)| *other != name) {
                    list.push((name, self.value()));
                }
            }
        }
        let methods = if self.chance(20) {
            vec![
                self.one(&["GET", "POST"]).to_owned(),
                self.one(&["GET", "PUT"]).to_owned(),
            ]
        } else {
            Vec::new()
        };
        let authority = self.chance(15).then(|| match self.0.below(3) {
            0 => ValueMatch::Prefix(self.one(&["we", "a"]).to_owned()),
            1 => ValueMatch::Regex(self.one(&["w.b", "(web|api)"]).to_owned()),
            _ => ValueMatch::Exact(self.one(&["web", "api"]).to_owned()),
        });
        let source = self.chance(20).then(|| self.source());
        Match {
            path,
            methods: methods.into(),
            headers: headers.into(),
            query: query.into(),
            authority: authority.map(Box::new),
            source: source.map(Box::new),
            sni: Vec::new().into(),
        }
    }

    fn source(&mut self) -> SourceMatch {
        let tags: Tags = if self.chance(60) {
            tags(&[("app", self.one(&["a", "b"]))])
        } else {
            BTreeMap::new()
        };
        SourceMatch {
            workload: self
                .chance(40)
                .then(|| self.one(&["w0", "w1", "w2"]).to_owned()),
            namespace: self.chance(20).then(|| "default".to_owned()),
            identity: None,
            tags,
            except_namespaces: if self.chance(15) {
                vec![self.one(&["default", "other"]).to_owned()]
            } else {
                Vec::new()
            },
        }
    }

    pub(in crate::policy) fn model(&mut self) -> Model {
        let count = [0, 1, 3, 10, 40][self.0.below(5) as usize];
        let rules = (0..count).map(|n| {
            let matches = (0..self.0.below(4))
                .map(|_| self.alternative())
                .collect::<Vec<_>>();
            // Most rules have conditions, or nothing behind the first would ever be reached.
            let matches = if matches.is_empty() && self.chance(80) {
                vec![self.alternative()]
            } else {
                matches
            };
            let route = vec![
                to("v1", self.0.below(3)),
                to("v2", self.0.below(3)),
                Target {
                    weight: 1,
                    ..Target::default()
                },
            ];
            rule(&format!("r{n}"), self.0.below(3) as i32, matches, route)
        });
        let mut model = model(service(2, 1), rules.collect(), Vec::new());
        model.workloads = (0..3)
            .map(|n| workload(&format!("w{n}"), &[("app", self.one(&["a", "b", "c"]))]))
            .collect();
        model
    }

    pub(in crate::policy) fn ask(&mut self) -> Ask {
        let path = self.path();
        let mut ask = get(&path).method(self.one(&["GET", "POST", "PUT"]));
        if self.chance(40) {
            let pairs: Vec<String> = (0..=self.0.below(3))
                .map(|_| {
                    let name = self.one(&["x", "y", "z"]);
                    format!("{name}={}", self.one(&["1", "%31", "2", "12", "b", ""]))
                })
                .collect();
            ask.query = Some(pairs.join("&"));
        }
        while self.chance(60) {
            let name = self.one(&["x", "y", "z"]);
            ask = ask.with(name, self.one(&["1", "2", "12", "b", ""]));
        }
        ask.authority(self.one(&["web", "WEB:80", "api", "other:1"]))
    }
}
