// The schedule of a pipeline, written by cost_model_LSTM. Call it at the end of schedule() of the Generator, unless using_autoscheduler():
//
//     apply_schedule_NAME(get_pipeline(), get_target());
//
// It stops where the pipeline has not the Funcs that the schedule is of.
#pragma once
#include "Halide.h"
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifndef HALIDE_FUNCS_BY_LABEL
#define HALIDE_FUNCS_BY_LABEL
// The Funcs of a pipeline by labels that stay the same: Halide numbers equal names in the order of creation, and goes on counting.
inline std::map<std::string, Halide::Func> funcs_by_label(const Halide::Pipeline &pipeline) {
    std::map<std::string, std::vector<std::pair<std::vector<unsigned long>, Halide::Func>>> groups;
    std::map<std::string, Halide::Internal::Function> found;
    for (const Halide::Func &output : pipeline.outputs()) {
        for (const auto &entry : Halide::Internal::find_transitive_calls(output.function())) {
            found.insert(entry);
        }
    }
    static const std::regex suffix("\\$[0-9]+"), unnamed("([a-z]|lambda_)[0-9]+"), number("[0-9]+");
    for (const auto &entry : found) {
        std::string base = std::regex_replace(entry.first, suffix, "");
        std::smatch match;
        if (std::regex_match(base, match, unnamed)) {
            base = std::string(match[1]).substr(0, match[1] == "lambda_" ? 6 : 1);
        }
        std::vector<unsigned long> numbers;
        for (std::sregex_iterator i(entry.first.begin(), entry.first.end(), number), end; i != end; ++i) {
            numbers.push_back(std::stoul(i->str()));
        }
        groups[base].emplace_back(numbers, Halide::Func(entry.second));
    }
    std::map<std::string, Halide::Func> labelled;
    for (auto &group : groups) {
        std::stable_sort(group.second.begin(), group.second.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
        for (size_t i = 0; i < group.second.size(); i++) {
            labelled.emplace(group.second.size() == 1 ? group.first : group.first + "#" + std::to_string(i), group.second[i].second);
        }
    }
    return labelled;
}
#endif

inline void apply_schedule_NAME(::Halide::Pipeline pipeline, ::Halide::Target target) {
    using namespace Halide;
    (void)target;
    std::map<std::string, Func> funcs = funcs_by_label(pipeline);
    // Label, arguments and definitions of each Func.
    const std::vector<std::tuple<std::string, int, int>> expected = {
EXPECTED
    };
    bool same = funcs.size() == expected.size();
    for (const auto &[label, arguments, definitions] : expected) {
        auto func = funcs.find(label);
        if (func == funcs.end() || func->second.dimensions() != arguments || func->second.num_update_definitions() + 1 != definitions) {
            std::cerr << "apply_schedule_NAME: no Func " << label << " as the schedule knows it in this pipeline\n";
            same = false;
        }
    }
    if (!same) {
        std::cerr << "apply_schedule_NAME: the schedule is of another pipeline, with " << expected.size() << " Funcs, this one has "
                  << funcs.size() << "; tune this one anew\n";
        std::exit(1);
    }

BODY
}
