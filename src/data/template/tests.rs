//! Rendering against strings that transformers 5.23 (Jinja2 3.1) gave for the same templates and messages.

use super::*;

fn template(source: &str) -> Result<ChatTemplate> {
    let specials = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let specials = specials.into_iter().map(|(name, token)| (name.to_owned(), token.to_owned())).collect();
    let args = serde_json::json!({"thinking": false, "options": {"a": "é<&>'", "b": [1, 2.5, null]}});
    ChatTemplate::new(source, &specials, args.as_object().unwrap(), Some(1_721_995_200), "m")
}

fn messages() -> Vec<Message> {
    vec![
        Message::new("system", "  Be brief. "),
        Message::new("user", "One\n\ttwo <b>&\"q\" é😀"),
        Message::new("assistant", "<think>\nhm\n</think>\n\nThree"),
        Message::new("user", "Four?"),
    ]
}

fn render(source: &str) -> String {
    template(source).unwrap().render(&messages(), true).unwrap()
}

#[test]
fn whitespace_control_equals_transformers() {
    let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m.role == 'system' %}\n  [{{ \
                  m['content'] | trim }}]\n    {% elif m.role == 'user' %}\n<u>{{ m.content }}</u>\n    {%- \
                  else %}\n  {{- m.content }}{{ eos_token }}  {#- note -#}\n\n    {% endif %}\n{% endfor \
                  %}\n{% if add_generation_prompt %}\n<a>\n{% endif %}\n\n";
    assert_eq!(render(source), GOLDEN_WHITESPACE);
}

#[test]
fn python_methods_loop_controls_and_namespaces_equal_transformers() {
    let source = "{%- set ns = namespace(last=-1, n=0) -%}\n{%- for m in messages[::-1] -%}\n{%- if ns.last \
                  < 0 and m.role == 'user' -%}{%- set ns.last = messages|length - 1 - loop.index0 -%}{%- \
                  endif -%}\n{%- endfor -%}\nlast={{ ns.last }}\n{%- macro show(m, mark='*') -%}\n{{ mark \
                  }}{{ m.role.upper().replace('S', '$') }}:{{ \
                  m.content.split('</think>')[-1].lstrip('\\n').strip() }}\n{%- endmacro -%}\n{%- for m in \
                  messages -%}\n{%- if loop.index0 == 0 -%}{%- continue -%}{%- endif -%}\n{%- if loop.last \
                  -%}{%- break -%}{%- endif -%}\n|{{ show(m) }}|{{ show(m, mark='#') }}|{{ loop.index }}{{ \
                  loop.previtem.role }}\n{%- endfor -%}\n|{{ messages | selectattr('role', 'equalto', \
                  'user') | map(attribute='content') | list | length }}\n|{{ messages[0].content is string \
                  }},{{ messages[0].name is defined }},{{ tools is none }},{{ tools is not none }},{{ \
                  missing }},{{ none }},{{ [true, none, 'x', 1.5] }}\n|{{ messages[0].get('name', 'anon') \
                  }},{{ 'a' ~ 1 ~ none }},{{ 7 // 2 }},{{ 7 / 2 }},{{ -7 % 3 }},{{ 'abc'[::-1] }},{{ \
                  'a,b,,c'.split(',') }}\n|{{ messages[1].content.startswith('One') and 'two' in \
                  messages[1].content }},{{ 'x'.title() }},{{ '-'.join(['p', 'q']) }},{{ \
                  'tool_x'.removeprefix('tool_') }},{{ 'a=b=c'.partition('=')[2] }},{{ \
                  'a=b=c'.rpartition('=')[0] }}";
    assert_eq!(render(source), GOLDEN_METHODS);
}

#[test]
fn tojson_and_items_equal_transformers() {
    let source = "{{ messages[1] | tojson }}\n{{ options | tojson(indent=2) }}\n{{ options | \
                  tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}\n{% for k, v in \
                  options.items() %}{{ k }}={{ v }};{% endfor %}\n{% for k, v in options | items %}{{ k \
                  }};{% endfor %}{{ options }}{{ thinking }}";
    assert_eq!(render(source), GOLDEN_JSON);
}

#[test]
fn generation_tags_print_nothing_and_hide_what_is_set_inside() {
    let source = "{#- uses {% generation %} -#}\n{%- for m in messages %}\n    {%- if m.role == 'assistant' \
                  %}\n        {{- '<a>' }}\n        {%- generation %}\n        {%- set inner = 1 %}\n        \
                  {{- m.content + eos_token }}\n        {%- endgeneration %}\n    {%- else %}\n        {{- \
                  '<' + m.role + '>' + m.content }}\n    {%- endif %}\n{%- endfor %}\n{% generation %}\n  \
                  x\n{% endgeneration %}\n{{ inner is defined }}";
    assert_eq!(render(source), GOLDEN_GENERATION);
    assert_eq!(
        replace_generation_tags("{%-generation-%}a{%+ endgeneration %}{% if generation %}{%"),
        "{%-with-%}a{%+ endwith %}{% if generation %}{%"
    );
}

#[test]
fn the_date_is_the_one_given() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
    let error = template("{{ strftime_now('%Q') }}").unwrap().render(&messages(), true).unwrap_err();
    assert!(error.to_string().contains("%Q"), "{error}");
}

#[test]
fn refusals_carry_the_templates_own_words() {
    let source = "{% macro check(m) %}{% if m.role == 'system' %}{{ raise_exception('System role not \
                  supported') }}{% endif %}{% endmacro %}{% for m in messages %}{{ check(m) }}{% endfor %}";
    let error = template(source).unwrap().render(&messages(), true).unwrap_err().to_string();
    assert!(error.contains("refusal: System role not supported\n"), "{error}");
    let error =
        template("a\n{{ nothing.at.all }}").unwrap().render(&messages(), true).unwrap_err().to_string();
    assert!(error.contains("template line 2") && !error.contains("----"), "{error}");
}

#[test]
fn a_broken_template_is_an_error_at_once() {
    let error = template("a\n{% for m in messages %}").unwrap_err().to_string();
    assert!(error.starts_with("m: expected a Jinja chat template"), "{error}");
}

#[test]
fn none_is_not_iterable() {
    let source = "{% if tools is iterable and tools | length > 0 %}x{% endif %}{{ [] is iterable }},{{ 'a' \
                  is iterable }},{{ none is iterable }},{{ missing is iterable }},{{ 3 is iterable }}";
    assert_eq!(render(source), "True,True,False,True,False");
}

#[test]
fn endless_work_runs_out_of_fuel() {
    for source in [
        "{% for a in range(10000) %}{% for b in range(10000) %}{{ b }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for a in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    ] {
        assert!(template(source).unwrap().render(&messages(), true).is_err(), "{source}");
    }
    let error = template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    let error = error.unwrap().render(&messages(), true).unwrap_err().to_string();
    assert!(error.contains("still running"), "{error}");
}

const GOLDEN_WHITESPACE: &str =
    "<s>\n  [Be brief.]\n<u>One\n\ttwo <b>&\"q\" é😀</u><think>\nhm\n</think>\n\nThree</s><u>Four?</u><a>\n";
const GOLDEN_METHODS: &str = "last=3|*U$ER:One\n\ttwo <b>&\"q\" é😀|#U$ER:One\n\ttwo <b>&\"q\" \
                              é😀|2system|*A$$I$TANT:Three|#A$$I$TANT:Three|3user|2\n|True,False,True,False,,None,\
                              [True, None, 'x', 1.5]\n|anon,a1None,3,3.5,2,cba,['a', 'b', '', \
                              'c']\n|True,X,p-q,x,b=c,a=b";
const GOLDEN_JSON: &str = "{\"role\": \"user\", \"content\": \"One\\n\\ttwo <b>&\\\"q\\\" é😀\"}\n{\n  \"a\": \
                           \"é<&>'\",\n  \"b\": [\n    1,\n    2.5,\n    null\n  \
                           ]\n}\n{\"a\":\"\\u00e9<&>'\",\"b\":[1,2.5,null]}\na=é<&>';b=[1, 2.5, \
                           None];a;b;{'a': \"é<&>'\", 'b': [1, 2.5, None]}False";
const GOLDEN_GENERATION: &str = "<system>  Be brief. <user>One\n\ttwo <b>&\"q\" \
                                 é😀<a><think>\nhm\n</think>\n\nThree</s><user>Four?  x\nFalse";

/// Renders templates of released models, and compares with what transformers rendered in
/// `tests/python/templates.py`. The templates belong to others and are not in this repository.
#[test]
#[ignore = "needs AWEIGH_TEMPLATES, which tests/python/templates.py makes"]
fn templates_of_released_models_equal_transformers() {
    let path = std::env::var("AWEIGH_TEMPLATES").expect("AWEIGH_TEMPLATES");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let specials = file["specials"].as_object().unwrap().iter();
    let specials = specials.map(|(name, token)| (name.clone(), token.as_str().unwrap().to_owned())).collect();
    let (mut wrong, mut refused) = (Vec::new(), 0);
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let template = ChatTemplate::new(
            case["template"].as_str().unwrap(),
            &specials,
            &serde_json::Map::new(),
            file["now"].as_i64(),
            "m",
        );
        let prompt = case["add_generation_prompt"] == true;
        let found = template.and_then(|template| template.render(&messages, prompt));
        match (case["expected"].as_str(), found) {
            (Some(expected), Ok(found)) if expected == found => {}
            // A template that iterates over `tools`, which is None, fails in Jinja2; here None has no items.
            (None, _) => refused += 1,
            (expected, found) => {
                wrong.push(format!("{}:\nexpected {expected:?}\nfound    {found:?}", case["name"]))
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    eprintln!("{} cases equal, {refused} more that transformers does not render", cases.len() - refused);
}
