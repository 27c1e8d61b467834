"""What modules of CPython 3.8 to 3.14 hold, compiled into mod.cpython-3*.pyc by

    py_compile.compile("mod.py", "mod.cpython-3N.pyc", "/opt/app/pkg/sub/mod.py",
                       invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
"""
from __future__ import annotations

import os
import os.path
import a.b.c
import a.b.c as abc, json as j
from . import x, y
from .. import z
from ..p.q import r as s, t
from ...deep import u
from .beside import v
from star.inner import *
from collections import (
    OrderedDict, namedtuple as nt,
    defaultdict)

try:
    import fast
    from fast import speed
except ImportError:
    import slow as fast
else:
    import otherwise

if os.name == "posix":
    import posixpath as p
elif os.name == "nt":
    import ntpath as p
else:
    from elsewhere import p

for number in 1, 2:
    import looped
while number < 0:
    import never
with open(os.devnull) as null:
    import within


def function(a, b=1, *args, c: int = 2, **kw):
    import hidden
    from hidden.far import away

    def nested():
        from .. import hiddenparent
        return a, hiddenparent
    return lambda: nested() or hidden or away


async def coroutine(n):
    import hiddenasync
    return [await m async for m in n if hiddenasync]


def generator():
    import hiddengen
    yield from (hiddengen for _ in range(3))


class Class(fast.Base, metaclass=type):
    """A class."""
    import ofclass

    class Inner:
        def method(self):
            import hiddenmethod
            return super().method(hiddenmethod, __class__)

    attribute: "name" = 5


constants = [
    os, None, True, False, ..., 0, 1, 255, 256, -1, -129, 65535, 2147483647, 2147483648,
    -2147483648, -2147483649, 1 << 100,
    -0x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef, 0.0, -0.0, 1.5, 1e308, -1e-300,
    3j, 1.5 - 2.5j, b"", b"bytes\x00\xff", b"l" * 300, "", "text", "interned_name",
    "not interned, and ASCII", "l" * 255, "long " * 60, "Grüße, 世界 🌍", "\udc80 surrogate",
    (), (1,), ((1, (2.5, ("three", (b"four", (None, ...))))), -5), (1, 2, 3) * 5,
]
members = os in {"frozen", 1, 2.5, None}, os in {"a", "ä"}, os in [1, (2, 3)]
cut = os[1:2], os[::-1], os[1:2, ..., None:"x"]
text = f"{os!r:>{number}} and {members}"

# More than 256 names and constants.
assert constants, """an assertion"""
_1 = _2 = _3 = _4 = None
n0 = n1 = n2 = n3 = n4 = n5 = n6 = n7 = n8 = n9 = n10 = n11 = n12 = n13 = n14 = n15 = n16 = \
    n17 = n18 = n19 = n20 = n21 = n22 = n23 = n24 = n25 = n26 = n27 = n28 = n29 = n30 = n31 = n32 \
    = n33 = n34 = n35 = n36 = n37 = n38 = n39 = n40 = n41 = n42 = n43 = n44 = n45 = n46 = n47 = \
    n48 = n49 = n50 = n51 = n52 = n53 = n54 = n55 = n56 = n57 = n58 = n59 = n60 = n61 = n62 = n63 \
    = n64 = n65 = n66 = n67 = n68 = n69 = n70 = n71 = n72 = n73 = n74 = n75 = n76 = n77 = n78 = \
    n79 = n80 = n81 = n82 = n83 = n84 = n85 = n86 = n87 = n88 = n89 = n90 = n91 = n92 = n93 = n94 \
    = n95 = n96 = n97 = n98 = n99 = n100 = n101 = n102 = n103 = n104 = n105 = n106 = n107 = n108 = \
    n109 = n110 = n111 = n112 = n113 = n114 = n115 = n116 = n117 = n118 = n119 = n120 = n121 = \
    n122 = n123 = n124 = n125 = n126 = n127 = n128 = n129 = n130 = n131 = n132 = n133 = n134 = \
    n135 = n136 = n137 = n138 = n139 = n140 = n141 = n142 = n143 = n144 = n145 = n146 = n147 = \
    n148 = n149 = n150 = n151 = n152 = n153 = n154 = n155 = n156 = n157 = n158 = n159 = n160 = \
    n161 = n162 = n163 = n164 = n165 = n166 = n167 = n168 = n169 = n170 = n171 = n172 = n173 = \
    n174 = n175 = n176 = n177 = n178 = n179 = n180 = n181 = n182 = n183 = n184 = n185 = n186 = \
    n187 = n188 = n189 = n190 = n191 = n192 = n193 = n194 = n195 = n196 = n197 = n198 = n199 = \
    n200 = n201 = n202 = n203 = n204 = n205 = n206 = n207 = n208 = n209 = n210 = n211 = n212 = \
    n213 = n214 = n215 = n216 = n217 = n218 = n219 = n220 = n221 = n222 = n223 = n224 = n225 = \
    n226 = n227 = n228 = n229 = n230 = n231 = n232 = n233 = n234 = n235 = n236 = n237 = n238 = \
    n239 = n240 = n241 = n242 = n243 = n244 = n245 = n246 = n247 = n248 = n249 = n250 = n251 = \
    n252 = n253 = n254 = n255 = n256 = n257 = n258 = n259 = n260 = n261 = n262 = n263 = n264 = \
    n265 = n266 = n267 = n268 = n269 = 0
many = [
    os, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014,
    1015, 1016, 1017, 1018, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 1026, 1027, 1028, 1029,
    1030, 1031, 1032, 1033, 1034, 1035, 1036, 1037, 1038, 1039, 1040, 1041, 1042, 1043, 1044,
    1045, 1046, 1047, 1048, 1049, 1050, 1051, 1052, 1053, 1054, 1055, 1056, 1057, 1058, 1059,
    1060, 1061, 1062, 1063, 1064, 1065, 1066, 1067, 1068, 1069, 1070, 1071, 1072, 1073, 1074,
    1075, 1076, 1077, 1078, 1079, 1080, 1081, 1082, 1083, 1084, 1085, 1086, 1087, 1088, 1089,
    1090, 1091, 1092, 1093, 1094, 1095, 1096, 1097, 1098, 1099, 1100, 1101, 1102, 1103, 1104,
    1105, 1106, 1107, 1108, 1109, 1110, 1111, 1112, 1113, 1114, 1115, 1116, 1117, 1118, 1119,
    1120, 1121, 1122, 1123, 1124, 1125, 1126, 1127, 1128, 1129, 1130, 1131, 1132, 1133, 1134,
    1135, 1136, 1137, 1138, 1139, 1140, 1141, 1142, 1143, 1144, 1145, 1146, 1147, 1148, 1149,
    1150, 1151, 1152, 1153, 1154, 1155, 1156, 1157, 1158, 1159, 1160, 1161, 1162, 1163, 1164,
    1165, 1166, 1167, 1168, 1169, 1170, 1171, 1172, 1173, 1174, 1175, 1176, 1177, 1178, 1179,
    1180, 1181, 1182, 1183, 1184, 1185, 1186, 1187, 1188, 1189, 1190, 1191, 1192, 1193, 1194,
    1195, 1196, 1197, 1198, 1199, 1200, 1201, 1202, 1203, 1204, 1205, 1206, 1207, 1208, 1209,
    1210, 1211, 1212, 1213, 1214, 1215, 1216, 1217, 1218, 1219, 1220, 1221, 1222, 1223, 1224,
    1225, 1226, 1227, 1228, 1229, 1230, 1231, 1232, 1233, 1234, 1235, 1236, 1237, 1238, 1239,
    1240, 1241, 1242, 1243, 1244, 1245, 1246, 1247, 1248, 1249, 1250, 1251, 1252, 1253, 1254,
    1255, 1256, 1257, 1258, 1259, 1260, 1261, 1262, 1263, 1264, 1265, 1266, 1267, 1268, 1269,
]

import extended
import extended.sub
from extended import one, two
from .extended import three
from .....extended import four
from .. import extended as five
n0 += extended.attribute
